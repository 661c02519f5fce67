/* The way through a network and back; see stack.py. */

#include "kernels.h"

#include <string.h>

/* What stands below the lowest layer, and is not trained. There may be nothing but x itself. */
typedef struct {
    long D;             /* of x (N, D), or, where frames are chosen, (B, T, D) */
    const long *chosen; /* (P, K): the frames that are put side by side for each of P positions of an example, or NULL */
    long T, P, K;
    const float *W, *b; /* (D_1, K D) and (D_1), by which these are multiplied; or NULL */
    float *spliced;     /* (B P, K D), filled in by `lay` */
} Base;

/* An affine layer, and what is made of its outputs; the layers of an array stand one above the other. The uppermost one has
   no norms. */
typedef struct {
    const float *W; /* (k G, D + 1), with b as its last column */
    long W_stride, D, k, G;
    long norm; /* 0: none; 1: 2-norms of groups whose k members lie G apart; 2: these brought to root-mean-square 1 */
    const long *chosen; /* (P, K): as of the base, of the positions below, for a layer above the lowest one; or NULL: all
                           there is is put side by side */
    long P, K;
    long T, N, stride; /* this and what follows is filled in by `lay`: positions below */
    float *rows;       /* (N, D + 1), which begin `stride` apart: those of the input with a 1 after each */
    float *z;          /* (N, k G): rows (W b)^T, then the derivative there */
    float *y;          /* (N, G): the norms, where there are any */
    float *scale;      /* (N): see `two_norm` */
    float *factor;     /* (G): room for the way back */
    float *dx, *dy;    /* (N, D) and (N, G): the derivatives at the rows, but for the lowest layer's, and at the outputs, but
                          for the uppermost one's */
} Layer;

/* What stands above the uppermost layer: the softmax, and how good it is. */
typedef struct {
    const float *scales; /* (C), by which z is multiplied first, or NULL */
    const long *labels;  /* (N) */
    double loss;         /* this and what follows is filled in: minus the log posteriors of the labels, summed */
    long correct;        /* how many labels are the likeliest class; -1 where one is no class */
} Top;

/* Lays out, in `room`, what the layers need for an input of `size` numbers in B examples. Returns how much room that is, or,
   where one layer's outputs are no rows for the next, -1. Without `room` it just counts. */
long lay(Base *base, Layer *layers, long count, long B, long size, float *room) {
    long used = 0, width = base->chosen ? base->K * base->D : base->D;
    long N = base->chosen ? B * base->P : size / base->D;
    size = N * (base->W ? layers->D : width);
    base->spliced = room && base->chosen && base->W ? room : NULL;
    if (base->chosen && base->W) used = (N * width + LANES - 1) / LANES * LANES;
    for (Layer *at = layers; at < layers + count; at++) {
        if (at->chosen) {
            if (N % B || at->D != at->K * at[-1].G) return -1;
            at->T = N / B;
            N = B * at->P;
        } else {
            if (size % at->D) return -1;
            N = size / at->D;
        }
        at->N = N;
        at->stride = (at->D + LANES) / LANES * LANES;
        /* Where nothing is chosen and there are no norms, derivatives lie in the places of what they are derivatives at. */
        long apart = at > layers && at->chosen, normed_below = at > layers && at[-1].norm;
        long chosen_above = at < layers + count - 1 && at[1].chosen;
        struct {
            float **matrix;
            long size;
        } needed[] = {{&at->rows, N * at->stride},
                      {&at->z, N * at->k * at->G},
                      {&at->y, at->norm ? N * at->G : 0},
                      {&at->scale, at->norm < 2 ? 0 : N},
                      {&at->factor, at->norm ? at->G : 0},
                      {&at->dx, apart || normed_below ? N * at->D : 0},
                      {&at->dy, chosen_above && at->norm ? N * at->G : 0}};
        for (int i = 0; i < 7; i++) {
            *needed[i].matrix = room && needed[i].size ? room + used : NULL;
            used += (needed[i].size + LANES - 1) / LANES * LANES;
        }
        if (!at->norm) at->dy = at->z;
        if (at > layers && !at->dx) at->dx = at[-1].dy;
        if (at > layers && !at[-1].dy) at[-1].dy = at->dx;
        size = N * at->G;
    }
    return used;
}

static void append_column_of_ones(const Layer *at) {
    for (long n = 0; n < at->N; n++) at->rows[n * at->stride + at->D] = 1.0f;
}

/* The lowest layer's rows. */
static void begin(const Base *base, const Layer *lowest, const float *x) {
    long N = lowest->N, D = lowest->D, stride = lowest->stride, width = base->D;
    if (base->chosen) {
        float *to = base->W ? base->spliced : lowest->rows;
        width = base->K * base->D;
        splice(x, base->chosen, to, N / base->P, base->T, base->D, base->P, base->K, base->W ? width : stride);
        x = to;
    }
    if (base->W) {
        for (long n = 0; n < N; n++) memcpy(lowest->rows + n * stride, base->b, D * sizeof(float));
        product(N, D, width, 1.0f, ROWS(x, width), COLUMNS(base->W, width), 1.0f, lowest->rows, stride);
    }
    if (base->W || base->chosen)
        append_column_of_ones(lowest);
    else
        append_ones(x, lowest->rows, N, D, stride);
}

static void forwards(const Base *base, const Layer *layers, const Layer *last, const float *x, float floor) {
    for (const Layer *at = layers; at <= last; at++) {
        if (at == layers)
            begin(base, at, x);
        else if (at->chosen) {
            splice(x, at->chosen, at->rows, at->N / at->P, at->T, at[-1].G, at->P, at->K, at->stride);
            append_column_of_ones(at);
        } else
            append_ones(x, at->rows, at->N, at->D, at->stride);
        product(at->N, at->k * at->G, at->D + 1, 1.0f, ROWS(at->rows, at->stride), COLUMNS(at->W, at->W_stride), 0.0f,
                at->z, at->k * at->G);
        if (at->norm) two_norm(at->z, at->y, at->scale, at->N, at->k, at->G, floor);
        x = at->norm ? at->y : at->z;
    }
}

/* Given the derivative at the uppermost z in its place. */
static void backwards(const Layer *layers, const Layer *last, float floor, float tiny) {
    for (const Layer *at = last; at >= layers; at--) {
        if (at->norm)
            two_norm_derivative(at->z, at->y, at->scale, at->dy, at->factor, at->N, at->k, at->G, floor, tiny);
        if (at == layers) break;
        product(at->N, at->D, at->k * at->G, 1.0f, ROWS(at->z, at->k * at->G), ROWS(at->W, at->W_stride), 0.0f, at->dx,
                at->D);
        if (at->chosen)
            splice_derivative(at->dx, at->chosen, at[-1].dy, at->N / at->P, at->T, at[-1].G, at->P, at->K);
    }
}

/* From x to the loss, and back to the lowest layer's z, given as much room as `lay` says. Where a label is no class, there
   is no way back. */
void there_and_back(Base *base, Layer *layers, long count, Top *top, const float *x, long B, long size, float *room,
                    float floor, float tiny) {
    const Layer *last = layers + count - 1;
    lay(base, layers, count, B, size, room);
    forwards(base, layers, last, x, floor);
    top->loss = cross_entropy(last->z, top->scales, top->labels, last->N, last->G, &top->correct);
    if (top->correct >= 0) backwards(layers, last, floor, tiny);
}
