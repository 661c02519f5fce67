/* The renewal of an estimate; see fisher.py. */

#include "kernels.h"

#include <stdlib.h>

/* e (R): the squared lengths of the rows of W_t, given d (R). */
INLINE void shares(const double *restrict d, double rho, double alpha, long D, double *restrict e, long R) {
    double sum = 0.0;
    for (long i = 0; i < R; i++) sum += d[i];
    double beta = rho * (1.0 + alpha) + alpha / D * sum;
    for (long i = 0; i < R; i++) e[i] = 1.0 / (beta / d[i] + 1.0);
}

/* Z (R, R), see fisher.py, divided by its trace where that is above 1. K and L (R, R) are of floats; d (R); room for R
   numbers. Returns the trace. */
static KERNEL double renewal_z(const float *restrict K, const float *restrict L, const double *restrict d, double rho,
                       double alpha, double eta, long N, long D, double *restrict room, double *restrict Z, long R) {
    double trace = 0.0, l = eta / N;
    shares(d, rho, alpha, D, room, R);
    for (long i = 0; i < R; i++) room[i] = 1.0 / sqrt(room[i]);
    for (long i = 0; i < R; i++) {
        double around = l * room[i], kept = (1.0 - eta) * (d[i] + rho);
        for (long j = 0; j < R; j++) {
            double both = kept + (1.0 - eta) * (d[j] + rho);
            Z[i * R + j] = (both * L[i * R + j] + l * K[i * R + j]) * (around * room[j]);
        }
        Z[i * R + i] += kept * kept;
        trace += Z[i * R + i];
    }
    if (trace > 1.0)
        for (long i = 0; i < R * R; i++) Z[i] /= trace;
    return trace;
}

/* A (R, R) and B (R), see fisher.py, and the renewal's numbers, given the eigenvalues of Z (R), rising, its eigenvectors,
   the rows of U (R, R), and its trace before it was divided; room for R numbers. Returns rho_1; `doubtful` says whether
   rounding may have cost the rows of R_{t+1} their orthonormality. */
static KERNEL double renewal_solution(Renewal *r, const double *restrict values, const double *restrict U, double trace,
                                      double tr_XX, long N, long D, double *restrict room, float *restrict A,
                                      float *restrict B, long R) {
    const double *restrict d = r->d;
    double *restrict d_1 = r->d_1, rho = r->rho, alpha = r->alpha;
    double l = r->eta / N, keep = 1.0 - r->eta, least = rho * keep * (rho * keep), all = D * rho, roots = 0.0;
    r->doubtful = 0;
    for (long i = 0; i < R; i++) {
        double c = values[R - 1 - i] * (trace > 1.0 ? trace : 1.0);
        if (c < least) {
            c = least;
            r->doubtful = 1;
        }
        d_1[i] = sqrt(c);
        roots += d_1[i];
        all += d[i];
    }
    if (d_1[0] * d_1[0] > r->condition * (d_1[R - 1] * d_1[R - 1])) r->doubtful = 1;
    double rho_1 = (l * tr_XX + keep * all - roots) / (D - R);
    double floor = r->delta * d_1[0] > r->epsilon ? r->delta * d_1[0] : r->epsilon;
    for (long i = 0; i < R; i++) {
        room[i] = d_1[i];
        d_1[i] = d_1[i] - rho_1 > floor ? d_1[i] - rho_1 : floor;
    }
    if (rho_1 < floor) rho_1 = floor;
    double e[R];
    shares(d_1, rho_1, alpha, D, e, R);
    for (long i = 0; i < R; i++) {
        B[i] = (float)(keep / l * (d[i] + rho));
        r->shrunk[i] = (float)(2.0 - e[i]);
        room[i] = l * sqrt(e[i]) / room[i];
    }
    shares(d, rho, alpha, D, e, R);
    for (long i = 0; i < R; i++) e[i] = 1.0 / sqrt(e[i]);
    for (long i = 0; i < R; i++)
        for (long j = 0; j < R; j++) A[i * R + j] = (float)(room[i] * U[(R - 1 - i) * R + j] * e[j]);
    return rho_1;
}

/* Room that begins where PyTorch's does: the last bits of a product may depend on how its matrices lie. */
static void *room_for(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* Whether the rows of E^{-1/2} W, with W (R, D), are orthonormal but for `tolerance`, given what d and rho make of E; room
   for R numbers, and O for R R. */
static int is_orthonormal(const float *W, const double *d, double rho, double alpha, double tolerance, long R, long D,
                          double *room, float *O) {
    shares(d, rho, alpha, D, room, R);
    product(R, R, D, 1.0f, ROWS(W, D), COLUMNS(W, D), 0.0f, O, R);
    for (long i = 0; i < R; i++)
        for (long j = 0; j < R; j++)
            if (!(fabs(O[i * R + j] / sqrt(room[i] * room[j]) - (i == j)) <= tolerance)) return 0;
    return 1;
}

/* What goes wrong with a renewal. */
enum { ALL_RIGHT, NOT_FINITE, NO_MEMORY, NO_EIGENVALUES };

/* W_{t+1} (R, D) and the rest of a renewal, from X (N, D), whose rows begin `stride` apart, H (N, R), W_t and tr(X X^T);
   see fisher.py. */
void renew(Renewal *renewal, const float *X, long N, long D, long stride, const float *H, const float *W, long R,
           double tr_XX) {
    Renewal *r = renewal;
    long work_size = 1 + 6 * R + 2 * R * R, more_size = 3 + 5 * R;
    double *Z = room_for((R * R + 2 * R + work_size) * sizeof(double) + more_size * sizeof(long) +
                         (R * D + 3 * R * R + R) * sizeof(float));
    r->outcome = NO_MEMORY;
    if (!Z) return;
    double *values = Z + R * R, *spare = values + R, *work = spare + R;
    long *more = (long *)(work + work_size);
    float *J = (float *)(more + more_size), *K = J + R * D, *L = K + R * R, *A = L + R * R, *B = A + R * R;

    product(R, D, N, 1.0f, COLUMNS(H, R), ROWS(X, stride), 0.0f, J, D);
    product(R, R, D, 1.0f, ROWS(J, D), COLUMNS(J, D), 0.0f, K, R);
    if (N < D)
        product(R, R, N, 1.0f, COLUMNS(H, R), ROWS(H, R), 0.0f, L, R);
    else
        product(R, R, D, 1.0f, ROWS(W, D), COLUMNS(J, D), 0.0f, L, R);
    double trace = renewal_z(K, L, r->d, r->rho, r->alpha, r->eta, N, D, spare, Z, R);
    r->outcome = isfinite(trace) && isfinite(tr_XX) ? ALL_RIGHT : NOT_FINITE;
    if (r->outcome == ALL_RIGHT && eigenvectors(Z, values, work, more, R)) r->outcome = NO_EIGENVALUES;
    if (r->outcome == ALL_RIGHT) {
        r->rho_1 = renewal_solution(r, values, Z, trace, tr_XX, N, D, spare, A, B, R);
        for (long i = 0; i < R; i++)
            for (long j = 0; j < D; j++) J[i * D + j] += B[i] * W[i * D + j];
        product(R, D, R, 1.0f, ROWS(A, R), ROWS(J, D), 0.0f, r->W_1, D);
        if (r->doubtful)
            r->doubtful = !is_orthonormal(r->W_1, r->d_1, r->rho_1, r->alpha, r->tolerance, R, D, spare, K);
    }
    free(Z);
}
