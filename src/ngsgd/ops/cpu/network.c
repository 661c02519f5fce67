/* The forward and backward pass of a minibatch through the affine layers of a network. */

#include "kernels.h"

#include <string.h>

static void append_column_of_ones(const Layer *layer) {
    for (long n = 0; n < layer->N; n++) layer->rows[n * layer->stride + layer->D] = 1.0f;
}

/* Computes the input rows of the lowest layer. */
static void transform_input(const InputTransform *transform, const Layer *lowest, const float *x) {
    long N = lowest->N, D = lowest->D, stride = lowest->stride, width = transform->D;
    if (transform->positions) {
        float *spliced = transform->W ? transform->spliced : lowest->rows;
        width = transform->K * transform->D;
        splice(x, transform->positions, spliced, N / transform->P, transform->T, transform->D, transform->P,
               transform->K, transform->W ? width : stride);
        x = spliced;
    }
    if (transform->W) {
        for (long n = 0; n < N; n++) memcpy(lowest->rows + n * stride, transform->b, D * sizeof(float));
        matmul(N, D, width, 1.0f, MATRIX(x, width), TRANSPOSED(transform->W, width), 1.0f, lowest->rows, stride);
    }
    if (transform->W || transform->positions)
        append_column_of_ones(lowest);
    else
        append_ones(x, lowest->rows, N, D, stride);
}

static void forward(const InputTransform *transform, const Layer *layers, const Layer *last, const float *x,
                    float floor) {
    for (const Layer *layer = layers; layer <= last; layer++) {
        if (layer == layers)
            transform_input(transform, layer, x);
        else if (layer->positions) {
            splice(x, layer->positions, layer->rows, layer->N / layer->P, layer->T, layer[-1].G, layer->P, layer->K,
                   layer->stride);
            append_column_of_ones(layer);
        } else
            append_ones(x, layer->rows, layer->N, layer->D, layer->stride);
        matmul(layer->N, layer->k * layer->G, layer->D + 1, 1.0f, MATRIX(layer->rows, layer->stride),
               TRANSPOSED(layer->W, layer->W_stride), 0.0f, layer->z, layer->k * layer->G);
        if (layer->norm) two_norm(layer->z, layer->y, layer->scale, layer->N, layer->k, layer->G, floor);
        x = layer->norm ? layer->y : layer->z;
    }
}

/* Expects the derivative with respect to the uppermost z in its place, and leaves those of the other layers in theirs.
 */
static void backward(const Layer *layers, const Layer *last, float floor, float tiny) {
    for (const Layer *layer = last; layer >= layers; layer--) {
        if (layer->norm)
            two_norm_backward(layer->z, layer->y, layer->scale, layer->dy, layer->factor, layer->N, layer->k, layer->G,
                              floor, tiny);
        if (layer == layers) break;
        matmul(layer->N, layer->D, layer->k * layer->G, 1.0f, MATRIX(layer->z, layer->k * layer->G),
               MATRIX(layer->W, layer->W_stride), 0.0f, layer->dx, layer->D);
        if (layer->positions)
            splice_backward(layer->dx, layer->positions, layer[-1].dy, layer->N / layer->P, layer->T, layer[-1].G,
                            layer->P, layer->K);
    }
}

/* Computes the loss, the rows of each layer, and the derivative with respect to each layer's z, which replaces z. There
   is no backward pass if a label is out of range. */
void forward_backward(const InputTransform *transform, const Layer *layers, long num_layers, OutputLoss *output,
                      const float *x, float floor, float tiny) {
    const Layer *last = layers + num_layers - 1;
    forward(transform, layers, last, x, floor);
    output->loss = cross_entropy(last->z, output->scales, output->labels, last->N, last->G, &output->correct);
    if (output->correct >= 0) backward(layers, last, floor, tiny);
}
