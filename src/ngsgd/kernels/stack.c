/* The way through affine layers and back; see stack.py. */

#include "kernels.h"

/* An affine layer, and what is made of its outputs; the layers of an array stand one above the other. */
typedef struct {
    const float *W; /* (k G, D + 1), with b as its last column */
    long W_stride, D, k, G;
    long norm; /* 0: none; 1: 2-norms of groups whose k members lie G apart; 2: these brought to root-mean-square 1 */
    long N, stride; /* what follows is filled in by `lay` */
    float *rows;    /* (N, D + 1), which begin `stride` apart: those of the input with a 1 after each */
    float *z;       /* (N, k G): rows (W b)^T */
    float *y;       /* (N, G): the norms, where there are any */
    float *scale;   /* (N): see `two_norm` */
    float *factor;  /* (G): room for the way back */
    float *dx;      /* (N, D): the derivative at the input */
} Layer;

/* Lays out, in `room`, what the layers need for an input of `size` numbers, but for the last one's output and the first
   one's derivative. Returns how much room that is, or, where one layer's outputs are no rows for the next, -1. Without
   `room` it just counts. */
long lay(Layer *layers, long count, long size, float *room, float *out) {
    long used = 0;
    for (Layer *at = layers; at < layers + count; at++) {
        if (size % at->D) return -1;
        long N = size / at->D, last = at == layers + count - 1;
        at->N = N;
        at->stride = (at->D + LANES) / LANES * LANES;
        struct {
            float **matrix;
            long size;
        } needed[] = {{&at->rows, N * at->stride},
                      {&at->z, last && !at->norm ? 0 : N * at->k * at->G},
                      {&at->y, last || !at->norm ? 0 : N * at->G},
                      {&at->scale, at->norm < 2 ? 0 : N},
                      {&at->factor, at->norm ? at->G : 0},
                      {&at->dx, at == layers ? 0 : N * at->D}};
        for (int i = 0; i < 6; i++) {
            *needed[i].matrix = room && needed[i].size ? room + used : NULL;
            used += (needed[i].size + LANES - 1) / LANES * LANES;
        }
        if (last && at->norm) at->y = out;
        if (last && !at->norm) at->z = out;
        size = N * at->G;
    }
    return used;
}

/* Affine layers, from x to `out`, given as much room as `lay` says. */
void forwards(Layer *layers, long count, const float *x, long size, float *room, float *out, float floor) {
    lay(layers, count, size, room, out);
    for (const Layer *at = layers; at < layers + count; at++) {
        append_ones(x, at->rows, at->N, at->D, at->stride);
        product(at->N, at->k * at->G, at->D + 1, 1.0f, ROWS(at->rows, at->stride), COLUMNS(at->W, at->W_stride), 0.0f,
                at->z, at->k * at->G);
        if (at->norm) two_norm(at->z, at->y, at->scale, at->N, at->k, at->G, floor);
        x = at->norm ? at->y : at->z;
    }
}

/* The way back, given the derivative at the output, dy: the z of layers with norms become the derivatives there. Where dx,
   for the derivative at x, is given, it is wanted. */
void backwards(Layer *layers, long count, const float *dy, float *dx, float floor, float tiny) {
    layers->dx = dx;
    for (const Layer *at = layers + count - 1; at >= layers; at--) {
        if (at->norm) two_norm_derivative(at->z, at->y, at->scale, dy, at->factor, at->N, at->k, at->G, floor, tiny);
        const float *dz = at->norm ? at->z : dy;
        if (at->dx)
            product(at->N, at->D, at->k * at->G, 1.0f, ROWS(dz, at->k * at->G), ROWS(at->W, at->W_stride), 0.0f, at->dx,
                    at->D);
        dy = at->dx;
    }
}
