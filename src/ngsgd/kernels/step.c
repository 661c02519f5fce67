/* The step of affine layers; see step.py. */

#include "kernels.h"

#include <string.h>

/* One side of a layer's step: the rows of a minibatch, X (N, D), which begin `stride` apart, and W (R, D) with 2 - e (R),
   by which they become X^ = X - H W with H = X W^T; R is 0 where X^ = X. */
typedef struct {
    const float *X;
    long D, stride;
    const float *W, *shrunk;
    long R;
    Renewal *renewal; /* of the estimate that W is part of, where it is due, or NULL */
    float *H;         /* (N, R); this and what follows is filled in */
    float *lengths, *traces;
} Side;

/* The step of a layer with W (y.D, columns), whose rows begin `stride` apart. Its b (y.D) is a further column of these, or
   it is given, and x.D is columns + 1. */
typedef struct {
    Side x, y;
    long N;
    float *W;
    long stride, columns;
    float *b;
    long limited; /* whether the step was shortened */
} Step;

/* Lays out what the steps need. Returns how much room that is, without `spare` of it at its end: for what is of no use
   after each of them. Without `room` it just counts. */
long lay_steps(Step *steps, long count, float *room, long *spare) {
    long used = 0;
    *spare = 0;
    for (Step *at = steps; at < steps + count; at++) {
        for (int i = 0; i < 2; i++) {
            Side *side = i ? &at->y : &at->x;
            struct {
                float **matrix;
                long size;
            } needed[] = {{&side->H, at->N * side->R}, {&side->lengths, at->N}, {&side->traces, 2}};
            for (int k = 0; k < 3; k++) {
                *needed[k].matrix = room && needed[k].size ? room + used : NULL;
                used += (needed[k].size + LANES - 1) / LANES * LANES;
            }
        }
        long formed = at->N * (at->x.stride + at->y.stride), apart = at->N * at->x.stride + at->y.R * at->x.D;
        *spare = formed > *spare ? formed : *spare;
        *spare = apart > *spare ? apart : *spare;
    }
    return used;
}

/* H, lengths and traces, these 1 where X^ = X: gamma is 1, however large the rows. */
static void measure(const Side *side, long N) {
    if (side->R)
        product(N, side->R, side->D, 1.0f, ROWS(side->X, side->stride), COLUMNS(side->W, side->D), 0.0f, side->H, side->R);
    row_lengths(side->X, N, side->D, side->stride, side->H, side->shrunk, side->R, side->lengths, side->traces);
    if (!side->R) side->traces[0] = side->traces[1] = 1.0f;
}

static void form(float *X_hat, const Side *side, long N) {
    for (long n = 0; n < N; n++) memcpy(X_hat + n * side->stride, side->X + n * side->stride, side->D * sizeof(float));
    product(N, side->D, side->R, -1.0f, ROWS(side->H, side->R), ROWS(side->W, side->D), 1.0f, X_hat, side->stride);
}

/* W,b += s Y X, of Y (y.D, K) and X (K, x.D), whose rows begin `X_stride` apart. */
static void add(const Step *step, long K, double s, Factor Y, const float *X, long X_stride) {
    product(step->y.D, step->columns, K, (float)s, Y, ROWS(X, X_stride), 1.0f, step->W, step->stride);
    if (step->b) product(step->y.D, 1, K, (float)s, Y, ROWS(X + step->columns, X_stride), 1.0f, step->b, 1);
}

/* W,b -= s Y^^T X^ for each layer, with s = rate gamma_x gamma_y, or less where m is above 0 and the step would go further
   than m N; then the renewals that are due. */
KERNEL void descend(Step *steps, long count, float *room, double rate, double m) {
    long size;
    float *spare = room + lay_steps(steps, count, room, &size);
    for (Step *at = steps; at < steps + count; at++) {
        const Side *x = &at->x, *y = &at->y;
        long N = at->N;
        double s = rate;
        if (x->R || m > 0.0) measure(x, N);
        if (y->R || m > 0.0) measure(y, N);
        if (x->R && x->traces[1] != 0.0f) s *= sqrt((double)x->traces[0] / x->traces[1]);
        if (y->R && y->traces[1] != 0.0f) s *= sqrt((double)y->traces[0] / y->traces[1]);
        at->limited = 0;
        if (m > 0.0) {
            double change = s * dot(x->lengths, y->lengths, N), limit = m * N;
            at->limited = change > limit;
            if (at->limited) s *= limit / change;
        }
        /* Y^^T X^ = Y^T X^ - W_y^T (H_y^T X^), where that is less work than to form Y^. */
        int apart = y->R && N * y->D > x->D * (N + y->D);
        const float *X_hat = x->X, *Y_hat = y->X;
        float *second = spare + N * x->stride;
        if (x->R) form(spare, x, N), X_hat = spare;
        if (y->R && !apart) form(second, y, N), Y_hat = second;
        add(at, N, -s, COLUMNS(Y_hat, y->stride), X_hat, x->stride);
        if (apart) {
            product(y->R, x->D, N, 1.0f, COLUMNS(y->H, y->R), ROWS(X_hat, x->stride), 0.0f, second, x->D);
            add(at, y->R, s, COLUMNS(y->W, y->D), second, x->D);
        }
    }
    for (Step *at = steps; at < steps + count; at++)
        for (int i = 0; i < 2; i++) {
            const Side *side = i ? &at->y : &at->x;
            if (side->renewal)
                renew(side->renewal, side->X, at->N, side->D, side->stride, side->H, side->W, side->R, side->traces[0]);
        }
}
