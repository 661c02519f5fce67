/* Functions of rows; see rows.py. */

#include "kernels.h"

#include <string.h>

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

/* to: for each of B examples of T frames, x (B, T, D), P rows, which begin `stride` apart, of K frames side by side, those
   that are chosen (P, K). */
void splice(const float *x, const long *chosen, float *to, long B, long T, long D, long P, long K, long stride) {
    for (long b = 0; b < B; b++, x += T * D)
        for (long p = 0; p < P; p++, to += stride)
            for (long k = 0; k < K; k++) memcpy(to + k * D, x + chosen[p * K + k] * D, D * sizeof(float));
}

/* dx (B, T, D): the derivative at the input of `splice`, given that at its rows, to (B P, K D). */
KERNEL void splice_derivative(const float *restrict to, const long *restrict chosen, float *restrict dx, long B, long T,
                              long D, long P, long K) {
    memset(dx, 0, B * T * D * sizeof(float));
    for (long b = 0; b < B; b++, dx += T * D)
        for (long p = 0; p < P; p++)
            for (long k = 0; k < K; k++, to += D) {
                float *restrict frame = dx + chosen[p * K + k] * D;
                for (long i = 0; i < D; i++) frame[i] += to[i];
            }
}

INLINE float largest(const float *x, long D) {
    float strands[LANES], most = x[0];
    for (int lane = 0; lane < LANES; lane++) strands[lane] = most;
    long i = 0;
    for (; i + LANES <= D; i += LANES)
        for (int lane = 0; lane < LANES; lane++) strands[lane] = x[i + lane] > strands[lane] ? x[i + lane] : strands[lane];
    for (int lane = 0; lane < LANES; lane++) most = strands[lane] > most ? strands[lane] : most;
    for (; i < D; i++) most = x[i] > most ? x[i] : most;
    return most;
}

INLINE float total(const float *x, long D) {
    float strands[LANES] = {0};
    long i = 0;
    for (; i + LANES <= D; i += LANES)
        for (int lane = 0; lane < LANES; lane++) strands[lane] += x[i + lane];
    for (int lane = 0; i + lane < D; lane++) strands[lane] += x[i + lane];
    return sum(strands);
}

#define LEAST -87.3f

/* e^x for x of at most 0, and 0 below LEAST, where it would not have all of its digits: a power of 2 times a polynomial
   (Cephes, expf.c). In steps that the compiler turns into ones of several numbers, without calls. */
INLINE float exponential(float x) {
    const float rounder = 12582912.0f; /* 1.5 2^23: what is added to it becomes whole */
    float within = x < LEAST ? LEAST : x;
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
    return x < LEAST ? 0.0f : (p * r * r + r + 1.0f) * power.real;
}

/* Minus the log posteriors of the labels (N), summed, of a softmax of z (N, C), each row of which is multiplied by scales
   (C) first, if there are any. z becomes the derivative of that; `correct` is how often a label is the likeliest class, the
   first one of several, or -1 where there is a label that is no class: all is left as it was then. */
KERNEL double cross_entropy(float *restrict z, const float *restrict scales, const long *restrict labels, long N, long C,
                            long *correct) {
    double loss = 0.0;
    *correct = -1;
    for (long n = 0; n < N; n++)
        if (labels[n] < 0 || labels[n] >= C) return loss;
    *correct = 0;
    for (long n = 0; n < N; n++, z += C) {
        if (scales)
            for (long i = 0; i < C; i++) z[i] *= scales[i];
        float most = largest(z, C), of_label = z[labels[n]] - most;
        long first = 0;
        while (first < labels[n] && z[first] != most) first++;
        *correct += first == labels[n] && of_label == 0.0f;
        for (long i = 0; i < C; i++) z[i] = exponential(z[i] - most);
        float all = total(z, C), by = 1.0f / all;
        loss += log((double)all) - of_label;
        for (long i = 0; i < C; i++) z[i] *= by;
        z[labels[n]] -= 1.0f;
        if (scales)
            for (long i = 0; i < C; i++) z[i] *= scales[i];
    }
    return loss;
}
