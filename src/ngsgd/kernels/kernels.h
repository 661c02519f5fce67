/* What the compiled pieces of a training step share; see __init__.py.

   All matrices are of floats, row after row. What is no matrix product is made in one pass over its rows. Sums over a row
   run in LANES strands, whatever the processor, and products are not contracted with sums (-ffp-contract=off): the bytes
   are the same on every machine. Matrix products and eigenvalues are PyTorch's own. */

#pragma once

#include <math.h>
#include <stddef.h>

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

typedef struct {
    const float *at;
    long stride; /* from one row's begin to the next one's */
    char op;     /* 'T' where the transpose is meant, else 'N' */
} Factor;

#define ROWS(at, stride) ((Factor){at, stride, 'N'})
#define COLUMNS(at, stride) ((Factor){at, stride, 'T'})

#define OURS __attribute__((visibility("hidden")))

/* products.c */
OURS void product(long M, long N, long K, float alpha, Factor A, Factor B, float beta, float *C, long stride);
OURS long eigenvectors(double *Z, double *values, double *work, long *more, long R);

/* rows.c */
void append_ones(const float *x, float *rows, long N, long D, long stride);
void two_norm(const float *x, float *y, float *scale, long N, long k, long G, float floor);
void two_norm_derivative(float *x, const float *y, const float *scale, const float *dy, float *factor, long N, long k,
                         long G, float floor, float tiny);
OURS void row_lengths(const float *x, long N, long D, long stride, const float *H, const float *shrunk, long R,
                      float *lengths, float *traces);
OURS void splice(const float *x, const long *chosen, float *to, long B, long T, long D, long P, long K, long stride);
OURS void splice_derivative(const float *to, const long *chosen, float *dx, long B, long T, long D, long P, long K);
OURS double cross_entropy(float *z, const float *scales, const long *labels, long N, long C, long *correct);

/* fisher.c */
typedef struct {
    const double *d; /* (R) */
    double rho, alpha, eta;
    double epsilon, delta, condition, tolerance; /* what is too small, and what is in doubt */
    float *W_1, *shrunk; /* (R, D) and (R): where W_{t+1} and 2 - e_{t+1} are to go */
    double *d_1;         /* (R): likewise, of d_{t+1} */
    double rho_1;        /* this and what follows is filled in */
    long doubtful, outcome;
} Renewal;

void renew(Renewal *renewal, const float *X, long N, long D, long stride, const float *H, const float *W, long R,
           double tr_XX);
