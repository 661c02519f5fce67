/* Declarations shared by the kernels.

   Everything but a matrix product is computed in one pass over the rows. A sum over a row is accumulated in LANES
   partial sums on every processor, and products are not contracted with sums (-ffp-contract=off), so that the results
   are the same bytes everywhere. Matrix products and eigenvalues are computed by the BLAS and LAPACK inside PyTorch. */

#pragma once

#include <math.h>
#include <stddef.h>

#include "interface.h"

#define LANES 16

#ifdef KERNEL
/* Given on the compiler's command line. */
#elif defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL
#endif

#define INLINE static inline __attribute__((always_inline))
#define INTERNAL __attribute__((visibility("hidden")))

INLINE float sum_lanes(float *lanes) {
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

/* sum x_i y_i */
INLINE float dot(const float *restrict x, const float *restrict y, long D) {
    float lanes[LANES] = {0};
    long i = 0;
    for (; i + LANES <= D; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] += x[i + lane] * y[i + lane];
    for (int lane = 0; i + lane < D; lane++) lanes[lane] += x[i + lane] * y[i + lane];
    return sum_lanes(lanes);
}

/* sum x_i y_i z_i */
INLINE float dot3(const float *restrict x, const float *restrict y, const float *restrict z, long D) {
    float lanes[LANES] = {0};
    long i = 0;
    for (; i + LANES <= D; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] += x[i + lane] * y[i + lane] * z[i + lane];
    for (int lane = 0; i + lane < D; lane++) lanes[lane] += x[i + lane] * y[i + lane] * z[i + lane];
    return sum_lanes(lanes);
}

/* A factor of a matrix product. */
typedef struct {
    const float *data;
    long stride;
    char op; /* 'T' for the transpose, else 'N' */
} Factor;

#define MATRIX(data, stride) ((Factor){data, stride, 'N'})
#define TRANSPOSED(data, stride) ((Factor){data, stride, 'T'})

/* blas.c */
INTERNAL void matmul(long M, long N, long K, float alpha, Factor A, Factor B, float beta, float *C, long stride);
INTERNAL long eigh(double *Z, double *values, double *work, long *integer_work, long R);

/* rows.c */
INTERNAL void row_lengths(const float *x, long N, long D, long stride, const float *H, const float *two_minus_e, long R,
                          float *lengths, float *traces);
INTERNAL void splice(const float *x, const long *positions, float *spliced, long B, long T, long D, long P, long K,
                     long stride);
INTERNAL void splice_backward(const float *dspliced, const long *positions, float *dx, long B, long T, long D, long P,
                              long K);
INTERNAL double cross_entropy(float *z, const float *scales, const long *labels, long N, long C, long *correct);
