/* Functions of the rows of a matrix; see ngsgd.ops for their definitions. */

#include "kernels.h"

#include <string.h>

/* The scale that gives a row of this mean square root-mean-square 1; rows below the floor get a constant. */
INLINE float rms_scale(float mean_square, float floor) {
    return 1.0f / sqrtf(mean_square < floor ? floor : mean_square);
}

/* Computes the 2-norms y (N, G) of the groups of x (N, k G); the k members of a group are G elements apart. If `scale`
   is not NULL, the norms are then normalized as by `normalize`. */
KERNEL void two_norm(const float *restrict x, float *restrict y, float *restrict scale, long N, long k, long G,
                     float floor) {
    for (long n = 0; n < N; n++, y += G, x += k * G) {
        for (long g = 0; g < G; g++) y[g] = x[g] * x[g];
        for (long m = 1; m < k; m++)
            for (long g = 0; g < G; g++) y[g] += x[m * G + g] * x[m * G + g];
        for (long g = 0; g < G; g++) y[g] = sqrtf(y[g]);
        if (!scale) continue;
        float mean_square = dot(y, y, G) / G, by = rms_scale(mean_square, floor);
        for (long g = 0; g < G; g++) y[g] *= by;
        scale[n] = mean_square < floor ? 0.0f : by;
    }
}

/* Overwrites x (N, k G) with the derivative with respect to x, given the y and `scale` of `two_norm` and the derivative
   dy (N, G) with respect to y; factor (G) is scratch. */
KERNEL void two_norm_backward(float *restrict x, const float *restrict y, const float *restrict scale,
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

/* Scales the rows of x to root-mean-square 1, y (N, D), and stores the scales (N). A row below the floor is multiplied
   by a constant, and its scale is stored as 0. */
KERNEL void normalize(const float *restrict x, float *restrict y, float *restrict scale, long N, long D, float floor) {
    for (long n = 0; n < N; n++, x += D, y += D) {
        float mean_square = dot(x, x, D) / D, by = rms_scale(mean_square, floor);
        for (long i = 0; i < D; i++) y[i] = x[i] * by;
        scale[n] = mean_square < floor ? 0.0f : by;
    }
}

/* Computes the derivative dx (N, D) with respect to the input of `normalize`. */
KERNEL void normalize_backward(const float *restrict y, const float *restrict scale, const float *restrict dy,
                               float *restrict dx, long N, long D, float floor) {
    for (long n = 0; n < N; n++, y += D, dy += D, dx += D) {
        float along = scale[n] == 0.0f ? 0.0f : dot(dy, y, D) / D;
        float by = scale[n] == 0.0f ? 1.0f / sqrtf(floor) : scale[n];
        for (long i = 0; i < D; i++) dx[i] = (dy[i] - y[i] * along) * by;
    }
}

/* Computes the lengths (N) of the rows of X_hat = X - H W without forming it, and traces = (tr(X X^T), tr(X_hat
   X_hat^T)), given X (N, D), H (N, R) and 2 - e (R): |x_hat|^2 = |x|^2 - sum_r (2 - e_r) h_r^2. */
KERNEL void row_lengths(const float *restrict x, long N, long D, long stride, const float *restrict H,
                        const float *restrict two_minus_e, long R, float *restrict lengths, float *restrict traces) {
    double before = 0.0, after = 0.0;
    for (long n = 0; n < N; n++, x += stride, H += R) {
        float square = dot(x, x, D), removed = dot3(two_minus_e, H, H, R);
        float rest = square < removed ? 0.0f : square - removed;
        lengths[n] = sqrtf(rest);
        before += square;
        after += rest;
    }
    traces[0] = (float)before;
    traces[1] = (float)after;
}

/* Copies x (N, D) into rows (N, D + 1) and appends a 1 to each row. */
KERNEL void append_ones(const float *restrict x, float *restrict rows, long N, long D, long stride) {
    for (long n = 0; n < N; n++, x += D, rows += stride) {
        for (long i = 0; i < D; i++) rows[i] = x[i];
        rows[D] = 1.0f;
    }
}

/* For each of B examples x (B, T, D), concatenates the K frames at each of the positions (P, K) into a row of `spliced`
   (B P, K D). */
void splice(const float *x, const long *positions, float *spliced, long B, long T, long D, long P, long K,
            long stride) {
    for (long b = 0; b < B; b++, x += T * D)
        for (long p = 0; p < P; p++, spliced += stride)
            for (long k = 0; k < K; k++) memcpy(spliced + k * D, x + positions[p * K + k] * D, D * sizeof(float));
}

/* Computes the derivative dx (B, T, D) with respect to the input of `splice`, given dspliced (B P, K D). */
KERNEL void splice_backward(const float *restrict dspliced, const long *restrict positions, float *restrict dx, long B,
                            long T, long D, long P, long K) {
    memset(dx, 0, B * T * D * sizeof(float));
    for (long b = 0; b < B; b++, dx += T * D)
        for (long p = 0; p < P; p++)
            for (long k = 0; k < K; k++, dspliced += D) {
                float *restrict frame = dx + positions[p * K + k] * D;
                for (long i = 0; i < D; i++) frame[i] += dspliced[i];
            }
}

/* The largest element of x (D). */
INLINE float max_of(const float *x, long D) {
    float lanes[LANES], most = x[0];
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = most;
    long i = 0;
    for (; i + LANES <= D; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
    for (int lane = 0; lane < LANES; lane++) most = lanes[lane] > most ? lanes[lane] : most;
    for (; i < D; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* The sum of the elements of x (D). */
INLINE float sum_of(const float *x, long D) {
    float lanes[LANES] = {0};
    long i = 0;
    for (; i + LANES <= D; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] += x[i + lane];
    for (int lane = 0; i + lane < D; lane++) lanes[lane] += x[i + lane];
    return sum_lanes(lanes);
}

#define MIN_EXPONENT -87.3f

/* e^x for x <= 0, and 0 below MIN_EXPONENT, where the result would be denormal: a power of 2 times a polynomial
   (Cephes, expf.c). It has no branches or calls, so that the compiler can vectorise it. */
INLINE float exponential(float x) {
    const float rounder = 12582912.0f; /* 1.5 2^23: adding it rounds to an integer */
    float within = x < MIN_EXPONENT ? MIN_EXPONENT : x;
    union {
        float real;
        unsigned bits;
    } whole = {within * 1.44269504f + rounder}, power;
    float n = whole.real - rounder, r = within - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    power.bits = (whole.bits << 23) + 0x3f800000u;
    return x < MIN_EXPONENT ? 0.0f : (p * r * r + r + 1.0f) * power.real;
}

/* Returns minus the log posteriors of the labels (N), summed, under the softmax of z (N, C), whose rows are multiplied
   by scales (C) first unless that is NULL. Overwrites z with the derivative of the result. Sets `correct` to the number
   of labels that are the most likely class (the first one of several), or to -1 if a label is out of range; then z
   stays as it was. */
KERNEL double cross_entropy(float *restrict z, const float *restrict scales, const long *restrict labels, long N,
                            long C, long *correct) {
    double loss = 0.0;
    *correct = -1;
    for (long n = 0; n < N; n++)
        if (labels[n] < 0 || labels[n] >= C) return loss;
    *correct = 0;
    for (long n = 0; n < N; n++, z += C) {
        if (scales)
            for (long i = 0; i < C; i++) z[i] *= scales[i];
        float most = max_of(z, C), of_label = z[labels[n]] - most;
        long first = 0;
        while (first < labels[n] && z[first] != most) first++;
        *correct += first == labels[n] && of_label == 0.0f;
        for (long i = 0; i < C; i++) z[i] = exponential(z[i] - most);
        float all = sum_of(z, C), by = 1.0f / all;
        loss += log((double)all) - of_label;
        for (long i = 0; i < C; i++) z[i] *= by;
        z[labels[n]] -= 1.0f;
        if (scales)
            for (long i = 0; i < C; i++) z[i] *= scales[i];
    }
    return loss;
}
