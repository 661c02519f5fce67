/* The preconditioned step of affine layers. */

#include "kernels.h"

#include <string.h>

/* Computes H, the lengths and the traces. Without preconditioning the traces are 1, so that gamma is 1 however large
   the rows are. */
static void measure(const StepSide *side, long N) {
    if (side->R)
        matmul(N, side->R, side->D, 1.0f, MATRIX(side->X, side->stride), TRANSPOSED(side->W, side->D), 0.0f, side->H,
               side->R);
    row_lengths(side->X, N, side->D, side->stride, side->H, side->two_minus_e, side->R, side->lengths, side->traces);
    if (!side->R) side->traces[0] = side->traces[1] = 1.0f;
}

static void materialize(float *X_hat, const StepSide *side, long N) {
    for (long n = 0; n < N; n++) memcpy(X_hat + n * side->stride, side->X + n * side->stride, side->D * sizeof(float));
    matmul(N, side->D, side->R, -1.0f, MATRIX(side->H, side->R), MATRIX(side->W, side->D), 1.0f, X_hat, side->stride);
}

/* W,b += s Y X, with Y (y.D, K) and X (K, x.D). */
static void accumulate(const Step *step, long K, double s, Factor Y, const float *X, long X_stride) {
    matmul(step->y.D, step->columns, K, (float)s, Y, MATRIX(X, X_stride), 1.0f, step->W, step->stride);
    if (step->b) matmul(step->y.D, 1, K, (float)s, Y, MATRIX(X + step->columns, X_stride), 1.0f, step->b, 1);
}

/* W,b -= s Y_hat^T X_hat for each layer, with s = lr gamma_x gamma_y, or less where max_change is above 0 and the step
   would move the layer by more than max_change N; then updates the Fisher estimates that are due. `scratch` holds max(N
   (x.stride + y.stride), N x.stride + y.R x.D) elements of the layer that needs most. */
KERNEL void preconditioned_step(Step *steps, long num_steps, float *scratch, double lr, double max_change) {
    for (Step *step = steps; step < steps + num_steps; step++) {
        const StepSide *x = &step->x, *y = &step->y;
        long N = step->N;
        double s = lr;
        if (x->R || max_change > 0.0) measure(x, N);
        if (y->R || max_change > 0.0) measure(y, N);
        if (x->R && x->traces[1] != 0.0f) s *= sqrt((double)x->traces[0] / x->traces[1]);
        if (y->R && y->traces[1] != 0.0f) s *= sqrt((double)y->traces[0] / y->traces[1]);
        step->limited = 0;
        if (max_change > 0.0) {
            double change = s * dot(x->lengths, y->lengths, N), limit = max_change * N;
            step->limited = change > limit;
            if (step->limited) s *= limit / change;
        }
        /* Y_hat^T X_hat = Y^T X_hat - W_y^T (H_y^T X_hat), where that is less work than forming Y_hat. */
        int factored = y->R && N * y->D > x->D * (N + y->D);
        const float *X_hat = x->X, *Y_hat = y->X;
        float *second = scratch + N * x->stride;
        if (x->R) materialize(scratch, x, N), X_hat = scratch;
        if (y->R && !factored) materialize(second, y, N), Y_hat = second;
        accumulate(step, N, -s, TRANSPOSED(Y_hat, y->stride), X_hat, x->stride);
        if (factored) {
            matmul(y->R, x->D, N, 1.0f, TRANSPOSED(y->H, y->R), MATRIX(X_hat, x->stride), 0.0f, second, x->D);
            accumulate(step, y->R, s, TRANSPOSED(y->W, y->D), second, x->D);
        }
    }
    for (Step *step = steps; step < steps + num_steps; step++)
        for (int i = 0; i < 2; i++) {
            const StepSide *side = i ? &step->y : &step->x;
            if (side->update)
                update_fisher(side->update, side->X, step->N, side->D, side->stride, side->H, side->W, side->R,
                              side->traces[0]);
        }
}
