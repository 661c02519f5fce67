/* The update of a Fisher estimate. ngsgd.optim.online derives the formulas; ngsgd.ops.reference is the same in PyTorch.
 */

#include "kernels.h"

#include <stdlib.h>

/* e_t (R), given d_t (R). */
INLINE void compute_e(const double *restrict d, double rho, double alpha, long D, double *restrict e, long R) {
    double sum = 0.0;
    for (long i = 0; i < R; i++) sum += d[i];
    double beta = rho * (1.0 + alpha) + alpha / D * sum;
    for (long i = 0; i < R; i++) e[i] = 1.0 / (beta / d[i] + 1.0);
}

/* Computes Z_t (R, R), divided by its trace if that is above 1, given K_t and L_t (R, R); scratch (R). Returns the
 * trace. */
static KERNEL double compute_Z(const float *restrict K, const float *restrict L, const double *restrict d, double rho,
                               double alpha, double eta, long N, long D, double *restrict scratch, double *restrict Z,
                               long R) {
    double trace = 0.0, l = eta / N;
    compute_e(d, rho, alpha, D, scratch, R);
    for (long i = 0; i < R; i++) scratch[i] = 1.0 / sqrt(scratch[i]);
    for (long i = 0; i < R; i++) {
        double factor = l * scratch[i], kept = (1.0 - eta) * (d[i] + rho);
        for (long j = 0; j < R; j++) {
            double both = kept + (1.0 - eta) * (d[j] + rho);
            Z[i * R + j] = (both * L[i * R + j] + l * K[i * R + j]) * (factor * scratch[j]);
        }
        Z[i * R + i] += kept * kept;
        trace += Z[i * R + i];
    }
    if (trace > 1.0)
        for (long i = 0; i < R * R; i++) Z[i] /= trace;
    return trace;
}

/* Computes A_t (R, R), B_t (R) and the results of the update that need no further product, given the eigenvalues (R) of
   Z_t in ascending order, its eigenvectors as the rows of U (R, R), and the trace by which it was divided; scratch (R).
   Returns rho_{t+1}. needs_reorthogonalizing says whether rounding may have cost R_{t+1} its orthonormal rows. */
static KERNEL double solve_update(FisherUpdate *update, const double *restrict values, const double *restrict U,
                                  double trace, double tr_XX, long N, long D, double *restrict scratch,
                                  float *restrict A, float *restrict B, long R) {
    const double *restrict d = update->d_t;
    double *restrict d_1 = update->d_1, rho = update->rho_t, alpha = update->alpha;
    double l = update->eta / N, keep = 1.0 - update->eta;
    double c_floor = rho * keep * (rho * keep), tr_F = D * rho, sum_sqrt_c = 0.0;
    update->needs_reorthogonalizing = 0;
    for (long i = 0; i < R; i++) {
        double c = values[R - 1 - i] * (trace > 1.0 ? trace : 1.0);
        if (c < c_floor) {
            c = c_floor;
            update->needs_reorthogonalizing = 1;
        }
        d_1[i] = sqrt(c);
        sum_sqrt_c += d_1[i];
        tr_F += d[i];
    }
    if (d_1[0] * d_1[0] > update->condition_threshold * (d_1[R - 1] * d_1[R - 1])) update->needs_reorthogonalizing = 1;
    double rho_1 = (l * tr_XX + keep * tr_F - sum_sqrt_c) / (D - R);
    double floor = update->delta * d_1[0] > update->epsilon ? update->delta * d_1[0] : update->epsilon;
    for (long i = 0; i < R; i++) {
        scratch[i] = d_1[i];
        d_1[i] = d_1[i] - rho_1 > floor ? d_1[i] - rho_1 : floor;
    }
    if (rho_1 < floor) rho_1 = floor;
    double e[R];
    compute_e(d_1, rho_1, alpha, D, e, R);
    for (long i = 0; i < R; i++) {
        B[i] = (float)(keep / l * (d[i] + rho));
        update->two_minus_e[i] = (float)(2.0 - e[i]);
        scratch[i] = l * sqrt(e[i]) / scratch[i];
    }
    compute_e(d, rho, alpha, D, e, R);
    for (long i = 0; i < R; i++) e[i] = 1.0 / sqrt(e[i]);
    for (long i = 0; i < R; i++)
        for (long j = 0; j < R; j++) A[i * R + j] = (float)(scratch[i] * U[(R - 1 - i) * R + j] * e[j]);
    return rho_1;
}

/* Allocates with PyTorch's alignment: the last bits of a product may depend on the alignment of its matrices. */
static void *allocate(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* Whether the rows of E^{-1/2} W, with W (R, D), are orthonormal up to `tolerance`; scratch (R), and O (R, R). */
static int is_orthonormal(const float *W, const double *d, double rho, double alpha, double tolerance, long R, long D,
                          double *scratch, float *O) {
    compute_e(d, rho, alpha, D, scratch, R);
    matmul(R, R, D, 1.0f, MATRIX(W, D), TRANSPOSED(W, D), 0.0f, O, R);
    for (long i = 0; i < R; i++)
        for (long j = 0; j < R; j++)
            if (!(fabs(O[i * R + j] / sqrt(scratch[i] * scratch[j]) - (i == j)) <= tolerance)) return 0;
    return 1;
}

/* Computes F_{t+1} from F_t and a minibatch X (N, D), given H = X W_t^T (N, R), W_t (R, D) and tr(X X^T). */
void update_fisher(FisherUpdate *update, const float *X, long N, long D, long stride, const float *H, const float *W,
                   long R, double tr_XX) {
    long work_size = 1 + 6 * R + 2 * R * R, integer_work_size = 3 + 5 * R;
    double *Z = allocate((R * R + 2 * R + work_size) * sizeof(double) + integer_work_size * sizeof(long) +
                         (R * D + 3 * R * R + R) * sizeof(float));
    update->status = FISHER_OUT_OF_MEMORY;
    if (!Z) return;
    double *values = Z + R * R, *scratch = values + R, *work = scratch + R;
    long *integer_work = (long *)(work + work_size);
    float *J = (float *)(integer_work + integer_work_size), *K = J + R * D, *L = K + R * R, *A = L + R * R,
          *B = A + R * R;

    matmul(R, D, N, 1.0f, TRANSPOSED(H, R), MATRIX(X, stride), 0.0f, J, D);
    matmul(R, R, D, 1.0f, MATRIX(J, D), TRANSPOSED(J, D), 0.0f, K, R);
    if (N < D)
        matmul(R, R, N, 1.0f, TRANSPOSED(H, R), MATRIX(H, R), 0.0f, L, R);
    else
        matmul(R, R, D, 1.0f, MATRIX(W, D), TRANSPOSED(J, D), 0.0f, L, R);
    double trace = compute_Z(K, L, update->d_t, update->rho_t, update->alpha, update->eta, N, D, scratch, Z, R);
    update->status = isfinite(trace) && isfinite(tr_XX) ? FISHER_UPDATED : FISHER_NOT_FINITE;
    if (update->status == FISHER_UPDATED && eigh(Z, values, work, integer_work, R))
        update->status = FISHER_NO_CONVERGENCE;
    if (update->status == FISHER_UPDATED) {
        update->rho_1 = solve_update(update, values, Z, trace, tr_XX, N, D, scratch, A, B, R);
        for (long i = 0; i < R; i++)
            for (long j = 0; j < D; j++) J[i * D + j] += B[i] * W[i * D + j];
        matmul(R, D, R, 1.0f, MATRIX(A, R), MATRIX(J, D), 0.0f, update->W_1, D);
        if (update->needs_reorthogonalizing)
            update->needs_reorthogonalizing = !is_orthonormal(update->W_1, update->d_1, update->rho_1, update->alpha,
                                                              update->tolerance, R, D, scratch, K);
    }
    free(Z);
}
