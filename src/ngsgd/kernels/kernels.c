/* A training step in few pieces; see __init__.py.

   All matrices are of floats, row after row. What is no matrix product is made in one pass over its rows. Sums over a row
   run in LANES strands, whatever the processor, and products are not contracted with sums (-ffp-contract=off): the bytes
   are the same on every machine. Matrix products and eigenvalues are PyTorch's own. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16

#ifdef KERNEL
/* As the one who compiles wants it. */
#elif defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL
#endif

#define INLINE static inline __attribute__((always_inline))

INLINE float sum(float *strands) {
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) strands[lane] += strands[lane + half];
    return strands[0];
}

/* sum x_i y_i */
INLINE float dot(const float *restrict x, const float *restrict y, long D) {
    float strands[LANES] = {0};
    long i = 0;
    for (; i + LANES <= D; i += LANES)
        for (int lane = 0; lane < LANES; lane++) strands[lane] += x[i + lane] * y[i + lane];
    for (int lane = 0; i + lane < D; lane++) strands[lane] += x[i + lane] * y[i + lane];
    return sum(strands);
}

/* sum x_i y_i z_i */
INLINE float dot3(const float *restrict x, const float *restrict y, const float *restrict z, long D) {
    float strands[LANES] = {0};
    long i = 0;
    for (; i + LANES <= D; i += LANES)
        for (int lane = 0; lane < LANES; lane++) strands[lane] += x[i + lane] * y[i + lane] * z[i + lane];
    for (int lane = 0; i + lane < D; lane++) strands[lane] += x[i + lane] * y[i + lane] * z[i + lane];
    return sum(strands);
}

/* What brings a row of that mean square to root-mean-square 1, but for a row below the floor. */
INLINE float scale_of(float mean_square, float floor) { return 1.0f / sqrtf(mean_square < floor ? floor : mean_square); }

/* y (N, G): the 2-norms of groups whose k members lie G apart, in x (N, k G). Where `scale` is given these are then
   brought to root-mean-square 1, see `normalize`. */
KERNEL void two_norm(const float *restrict x, float *restrict y, float *restrict scale, long N, long k, long G,
                     float floor) {
    for (long n = 0; n < N; n++, y += G, x += k * G) {
        for (long g = 0; g < G; g++) y[g] = x[g] * x[g];
        for (long m = 1; m < k; m++)
            for (long g = 0; g < G; g++) y[g] += x[m * G + g] * x[m * G + g];
        for (long g = 0; g < G; g++) y[g] = sqrtf(y[g]);
        if (!scale) continue;
        float mean_square = dot(y, y, G) / G, by = scale_of(mean_square, floor);
        for (long g = 0; g < G; g++) y[g] *= by;
        scale[n] = mean_square < floor ? 0.0f : by;
    }
}

/* x (N, k G) becomes the derivative at x, given y and perhaps `scale` of `two_norm`, and the derivative dy at y (N, G);
   factor is room for G numbers. */
KERNEL void two_norm_derivative(float *restrict x, const float *restrict y, const float *restrict scale,
                                const float *restrict dy, float *restrict factor, long N, long k, long G, float floor,
                                float tiny) {
    float along = 0.0f, by = 1.0f, back = 1.0f;
    for (long n = 0; n < N; n++, y += G, dy += G, x += k * G) {
        if (scale) {
            along = scale[n] == 0.0f ? 0.0f : dot(dy, y, G) / G;
            by = scale[n] == 0.0f ? 1.0f / sqrtf(floor) : scale[n];
            back = 1.0f / by;
        }
        for (long g = 0; g < G; g++) {
            float norm = y[g] * back;
            factor[g] = (dy[g] - y[g] * along) * by / (norm < tiny ? tiny : norm);
        }
        for (long m = 0; m < k; m++)
            for (long g = 0; g < G; g++) x[m * G + g] *= factor[g];
    }
}

/* y (N, D): the rows of x brought to root-mean-square 1 by scale (N), which is 0 for a row below the floor: such a row
   is multiplied by a constant. */
KERNEL void normalize(const float *restrict x, float *restrict y, float *restrict scale, long N, long D, float floor) {
    for (long n = 0; n < N; n++, x += D, y += D) {
        float mean_square = dot(x, x, D) / D, by = scale_of(mean_square, floor);
        for (long i = 0; i < D; i++) y[i] = x[i] * by;
        scale[n] = mean_square < floor ? 0.0f : by;
    }
}

/* dx (N, D): the derivative at the input of `normalize`. */
KERNEL void normalize_derivative(const float *restrict y, const float *restrict scale, const float *restrict dy,
                                 float *restrict dx, long N, long D, float floor) {
    for (long n = 0; n < N; n++, y += D, dy += D, dx += D) {
        float along = scale[n] == 0.0f ? 0.0f : dot(dy, y, D) / D;
        float by = scale[n] == 0.0f ? 1.0f / sqrtf(floor) : scale[n];
        for (long i = 0; i < D; i++) dx[i] = (dy[i] - y[i] * along) * by;
    }
}

/* The lengths (N) of the rows of X - H W, and the traces before = tr(X X^T) and after, of these rows: given x (N, D),
   whose rows begin `stride` apart, H (N, R) and 2 - e (R). */
KERNEL void row_lengths(const float *restrict x, long N, long D, long stride, const float *restrict H,
                        const float *restrict shrunk, long R, float *restrict lengths, float *restrict traces) {
    double before = 0.0, after = 0.0;
    for (long n = 0; n < N; n++, x += stride, H += R) {
        float square = dot(x, x, D), taken = dot3(shrunk, H, H, R);
        float left = square < taken ? 0.0f : square - taken;
        lengths[n] = sqrtf(left);
        before += square;
        after += left;
    }
    traces[0] = (float)before;
    traces[1] = (float)after;
}

/* rows (N, D + 1), which begin `stride` apart: those of x (N, D) with a 1 after each. */
KERNEL void append_ones(const float *restrict x, float *restrict rows, long N, long D, long stride) {
    for (long n = 0; n < N; n++, x += D, rows += stride) {
        for (long i = 0; i < D; i++) rows[i] = x[i];
        rows[D] = 1.0f;
    }
}

/* e (R): the squared lengths of the rows of W_t, given d (R). */
INLINE void shares(const double *restrict d, double rho, double alpha, long D, double *restrict e, long R) {
    double sum = 0.0;
    for (long i = 0; i < R; i++) sum += d[i];
    double beta = rho * (1.0 + alpha) + alpha / D * sum;
    for (long i = 0; i < R; i++) e[i] = 1.0 / (beta / d[i] + 1.0);
}

/* Z (R, R), see fisher.py, divided by its trace where that is above 1. K and L (R, R) are of floats; d (R); room for R
   numbers. Returns the trace. */
KERNEL double renewal_z(const float *restrict K, const float *restrict L, const double *restrict d, double rho,
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

/* A (R, R), B, shrunk and d_1 (R), see fisher.py, given the eigenvalues of Z (R), rising, its eigenvectors, the rows of
   U (R, R), and its trace before it was divided; room for R numbers. Returns rho_1; `doubtful` says whether rounding may
   have cost the rows of R_{t+1} their orthonormality. */
KERNEL double renewal_solution(const double *restrict values, const double *restrict U, double trace, double tr_XX,
                              const double *restrict d, double rho, double alpha, double eta, long N, long D,
                              double epsilon, double delta, double condition, double *restrict room,
                              float *restrict A, float *restrict B, float *restrict shrunk, double *restrict d_1,
                              int *doubtful, long R) {
    double l = eta / N, keep = 1.0 - eta, least = rho * keep * (rho * keep), all = D * rho, roots = 0.0;
    *doubtful = 0;
    for (long i = 0; i < R; i++) {
        double c = values[R - 1 - i] * (trace > 1.0 ? trace : 1.0);
        if (c < least) {
            c = least;
            *doubtful = 1;
        }
        d_1[i] = sqrt(c);
        roots += d_1[i];
        all += d[i];
    }
    if (d_1[0] * d_1[0] > condition * (d_1[R - 1] * d_1[R - 1])) *doubtful = 1;
    double rho_1 = (l * tr_XX + keep * all - roots) / (D - R);
    double floor = delta * d_1[0] > epsilon ? delta * d_1[0] : epsilon;
    for (long i = 0; i < R; i++) {
        room[i] = d_1[i];
        d_1[i] = d_1[i] - rho_1 > floor ? d_1[i] - rho_1 : floor;
    }
    if (rho_1 < floor) rho_1 = floor;
    double e[R];
    shares(d_1, rho_1, alpha, D, e, R);
    for (long i = 0; i < R; i++) {
        B[i] = (float)(keep / l * (d[i] + rho));
        shrunk[i] = (float)(2.0 - e[i]);
        room[i] = l * sqrt(e[i]) / room[i];
    }
    shares(d, rho, alpha, D, e, R);
    for (long i = 0; i < R; i++) e[i] = 1.0 / sqrt(e[i]);
    for (long i = 0; i < R; i++)
        for (long j = 0; j < R; j++) A[i * R + j] = (float)(room[i] * U[(R - 1 - i) * R + j] * e[j]);
    return rho_1;
}

/* sgemm and dsyevd, with numbers that may be read as 32 or 64 bits wide. */
typedef void Multiply(const char *, const char *, const long *, const long *, const long *, const float *, const float *,
                      const long *, const float *, const long *, const float *, float *, const long *);
typedef void Diagonalise(const char *, const char *, const long *, double *, const long *, double *, double *,
                         const long *, long *, const long *, long *);
static Multiply *multiply;
static Diagonalise *diagonalise;

/* To be called first: where they are. */
void use(Multiply *sgemm, Diagonalise *dsyevd) {
    multiply = sgemm;
    diagonalise = dsyevd;
}

typedef struct {
    const float *at;
    long stride; /* from one row's begin to the next one's */
    char op;     /* 'T' where the transpose is meant, else 'N' */
} Factor;

/* C (M, N) = alpha A B + beta C, of A (M, K) and B (K, N). BLAS, which counts columns first, sees all transposed. */
static void product(long M, long N, long K, float alpha, Factor A, Factor B, float beta, float *C, long stride) {
    multiply(&B.op, &A.op, &N, &M, &K, &alpha, B.at, &B.stride, A.at, &A.stride, &beta, C, &stride);
}

/* Room that begins where PyTorch's does: the last bits of a product may depend on how its matrices lie. */
static void *room_for(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

#define ROWS(at, stride) ((Factor){at, stride, 'N'})
#define COLUMNS(at, stride) ((Factor){at, stride, 'T'})

/* An affine layer: rows (N, D_in + 1), which begin `stride` apart, are those of x (N, D_in) with a 1 after each, and
   z (N, k G) = rows (W b)^T. Where y is given it becomes what `two_norm` makes of z. */
void affine(const float *x, float *rows, long N, long D_in, long stride, const float *W, long W_stride, float *z, long k,
            long G, float *y, float *scale, float floor) {
    append_ones(x, rows, N, D_in, stride);
    product(N, k * G, D_in + 1, 1.0f, ROWS(rows, stride), COLUMNS(W, W_stride), 0.0f, z, k * G);
    if (y) two_norm(z, y, scale, N, k, G, floor);
}

/* The way back through `affine`: where y is given, z becomes the derivative there, given the one at y, dy (N, G), and
   room for G numbers; where dx (N, D_in) is wanted, it is the derivative dz (N, k G) at z brought to x. */
void affine_derivative(float *z, const float *y, const float *scale, const float *dy, float *factor, long N, long k, long G,
                       float floor, float tiny, const float *dz, const float *W, long W_stride, float *dx, long D_in) {
    if (y) two_norm_derivative(z, y, scale, dy, factor, N, k, G, floor, tiny);
    if (dx) product(N, D_in, k * G, 1.0f, ROWS(dz, k * G), ROWS(W, W_stride), 0.0f, dx, D_in);
}

/* One side of a layer's step: its rows X (N, D), which begin `stride` apart, and of X^ = X - H W, with H (N, R) and
   W (R, D), lengths (N) and traces. R is 0 where X^ = X. */
typedef struct {
    const float *X;
    long D, stride;
    float *H;
    const float *W;
    long R;
    float *lengths, *traces;
} Side;

/* H = X W^T, and then as `row_lengths`, given 2 - e (R). */
void measure(const Side *side, const float *shrunk, long N) {
    if (side->R)
        product(N, side->R, side->D, 1.0f, ROWS(side->X, side->stride), COLUMNS(side->W, side->D), 0.0f, side->H, side->R);
    row_lengths(side->X, N, side->D, side->stride, side->H, shrunk, side->R, side->lengths, side->traces);
}

static void form(float *X_hat, const Side *side, long N) {
    for (long n = 0; n < N; n++) memcpy(X_hat + n * side->stride, side->X + n * side->stride, side->D * sizeof(float));
    if (side->R)
        product(N, side->D, side->R, -1.0f, ROWS(side->H, side->R), ROWS(side->W, side->D), 1.0f, X_hat, side->stride);
}

/* W (D_y, D_x) -= s Y^^T X^, whose rows begin `stride` apart, with s = rate gamma_x gamma_y, or less where m is above 0
   and the step would go further than m N. Returns whether it would, and -1 where there is no memory. */
KERNEL int descend(const Side *x, const Side *y, float *W, long stride, long N, double rate, double m) {
    double step = rate;
    if (x->traces[1] != 0.0f) step *= sqrt((double)x->traces[0] / x->traces[1]);
    if (y->traces[1] != 0.0f) step *= sqrt((double)y->traces[0] / y->traces[1]);
    double change = step * dot(x->lengths, y->lengths, N), limit = m * N;
    int limited = m > 0.0 && change > limit;
    if (limited) step *= limit / change;

    /* Y^^T X^ = Y^T X^ - W_y^T (H_y^T X^), where that is less work than to form Y^. */
    int apart = y->R && N * y->D > x->D * (N + y->D);
    const float *X_hat = x->X, *Y_hat = y->X;
    long more = apart ? y->R * x->D : N * y->stride;
    float *room = room_for((N * x->stride + more) * sizeof(float)), *second = room + N * x->stride;
    if (!room) return -1;
    if (x->R) form(room, x, N), X_hat = room;
    if (y->R && !apart) form(second, y, N), Y_hat = second;
    product(y->D, x->D, N, (float)-step, COLUMNS(Y_hat, y->stride), ROWS(X_hat, x->stride), 1.0f, W, stride);
    if (apart) {
        product(y->R, x->D, N, 1.0f, COLUMNS(y->H, y->R), ROWS(X_hat, x->stride), 0.0f, second, x->D);
        product(y->D, x->D, y->R, (float)step, COLUMNS(y->W, y->D), ROWS(second, x->D), 1.0f, W, stride);
    }
    free(room);
    return limited;
}

/* What goes wrong with a renewal. */
enum { ALL_RIGHT, NOT_FINITE, NO_MEMORY, NO_EIGENVALUES };

/* W_{t+1} (R, D), shrunk and d_{t+1} (R) and rho_{t+1} from X (N, D), whose rows begin `stride` apart, H (N, R), W_t and
   the rest; see fisher.py. */
int renew(const float *X, long N, long D, long stride, const float *H, const float *W, const double *d, double rho,
          double tr_XX, double alpha, double eta, double epsilon, double delta, double condition, float *W_1,
          float *shrunk, double *d_1, double *rho_1, int *doubtful, long R) {
    long work_size = 1 + 6 * R + 2 * R * R, more_size = 3 + 5 * R, failed = 0;
    double *Z = room_for((R * R + 2 * R + work_size) * sizeof(double) + more_size * sizeof(long) +
                         (R * D + 3 * R * R + R) * sizeof(float));
    if (!Z) return NO_MEMORY;
    double *values = Z + R * R, *spare = values + R, *work = spare + R;
    long *more = (long *)(work + work_size);
    float *J = (float *)(more + more_size), *K = J + R * D, *L = K + R * R, *A = L + R * R, *B = A + R * R;

    product(R, D, N, 1.0f, COLUMNS(H, R), ROWS(X, stride), 0.0f, J, D);
    product(R, R, D, 1.0f, ROWS(J, D), COLUMNS(J, D), 0.0f, K, R);
    if (N < D)
        product(R, R, N, 1.0f, COLUMNS(H, R), ROWS(H, R), 0.0f, L, R);
    else
        product(R, R, D, 1.0f, ROWS(W, D), COLUMNS(J, D), 0.0f, L, R);
    double trace = renewal_z(K, L, d, rho, alpha, eta, N, D, spare, Z, R);
    int outcome = isfinite(trace) && isfinite(tr_XX) ? ALL_RIGHT : NOT_FINITE;
    if (outcome == ALL_RIGHT) {
        diagonalise("V", "L", &R, Z, &R, values, work, &work_size, more, &more_size, &failed);
        if (failed) outcome = NO_EIGENVALUES;
    }
    if (outcome == ALL_RIGHT) {
        *rho_1 = renewal_solution(values, Z, trace, tr_XX, d, rho, alpha, eta, N, D, epsilon, delta, condition, spare, A,
                                  B, shrunk, d_1, doubtful, R);
        for (long r = 0; r < R; r++)
            for (long i = 0; i < D; i++) J[r * D + i] += B[r] * W[r * D + i];
        product(R, D, R, 1.0f, ROWS(A, R), ROWS(J, D), 0.0f, W_1, D);
    }
    free(Z);
    return outcome;
}
