/* The interface between the kernels in C and their Python bindings. The build generates the bindings from this file
   (build_bindings.py), so that each structure and constant is declared here and nowhere else.

   Matrices are float32 in row-major order; `stride` is the distance from the start of one row to the start of the next
   one, in elements. Python allocates every array, except for the scratch of update_fisher, and
   fills in every pointer. */

/* The values of Layer.norm: how a layer's outputs z (N, k G) become its output. */
enum { NO_NORM, TWO_NORM, NORMALIZED_TWO_NORM };

/* The fixed transform below the lowest trained layer. */
typedef struct {
    long D; /* of the input x (N, D), or x (B, T, D) where frames are spliced */
    const long
        *positions; /* (P, K): the frames spliced for each of P positions of an example; NULL: x is used as it is */
    long T, P, K;
    const float *W, *b; /* (D_1, K D) and (D_1), applied to the spliced frames; NULL: there is no affine transform */
    float *spliced;     /* (B P, K D), scratch; used if there are both positions and W */
} InputTransform;

/* A trained affine layer. The layers of an array are stacked, the lowest one first; the uppermost one has no norm. */
typedef struct {
    const float *W; /* (k G, D + 1), the bias being its last column */
    long W_stride, D, k, G;
    long norm;
    const long *positions; /* (P, K): as above, of the positions of the layer below; NULL: its rows are used in order */
    long T, P, K;          /* T: positions of the layer below */
    long N, stride;        /* rows of this layer, and the stride of `rows` */
    float *rows;           /* (N, D + 1): the layer's input, with a 1 appended to each row */
    float *z;              /* (N, k G): the outputs, then the derivative with respect to them */
    float *y;              /* (N, G): the norms; NULL without a norm */
    float *scale;          /* (N): see two_norm; NULL unless the norms are normalized */
    float *factor;         /* (G): scratch of the backward pass */
    float *dx, *dy;        /* (N, D) and (N, G): derivatives with respect to the input and the output */
} Layer;

/* The softmax and the cross-entropy above the uppermost layer. */
typedef struct {
    const float *scales; /* (C), by which the outputs are multiplied first, or NULL */
    const long *labels;  /* (N) */
    double loss;         /* result: minus the log posteriors of the labels, summed */
    long correct;        /* result: how many labels are the most likely class; -1 if a label is out of range */
} OutputLoss;

/* The results of FisherUpdate.status. */
enum { FISHER_UPDATED, FISHER_NOT_FINITE, FISHER_OUT_OF_MEMORY, FISHER_NO_CONVERGENCE };

/* The update of a Fisher estimate; see ngsgd.optim.online for the symbols. */
typedef struct {
    const double *d_t; /* (R) */
    double rho_t, alpha, eta;
    double epsilon, delta, condition_threshold, tolerance;
    float *W_1, *two_minus_e; /* results: W_{t+1} (R, D) and 2 - e_{t+1} (R) */
    double *d_1;              /* result: d_{t+1} (R) */
    double rho_1;             /* result: rho_{t+1} */
    long needs_reorthogonalizing, status;
} FisherUpdate;

/* One side of a layer's step: X (N, D), preconditioned by X_hat = X - H W with H = X W^T; R = 0: X_hat = X. */
typedef struct {
    const float *X;
    long D, stride;
    const float *W, *two_minus_e; /* (R, D) and (R) */
    long R;
    FisherUpdate *update; /* of the estimate that W belongs to; NULL if none is due */
    float *H;             /* (N, R) */
    float *lengths;       /* (N): the 2-norms of the rows of X_hat */
    float *traces;        /* (2): tr(X X^T) and tr(X_hat X_hat^T) */
} StepSide;

/* The step of a layer with W (y.D, columns). */
typedef struct {
    StepSide x, y;
    long N;
    float *W;
    long stride, columns;
    float *b;     /* (y.D), where x.D is columns + 1; NULL: the bias is a column of W, or there is none */
    long limited; /* result: whether max-change shortened the step */
} Step;

void set_blas(void *sgemm, void *dsyevd);
void append_ones(const float *x, float *rows, long N, long D, long stride);
void two_norm(const float *x, float *y, float *scale, long N, long k, long G, float floor);
void two_norm_backward(float *x, const float *y, const float *scale, const float *dy, float *factor, long N, long k,
                       long G, float floor, float tiny);
void normalize(const float *x, float *y, float *scale, long N, long D, float floor);
void normalize_backward(const float *y, const float *scale, const float *dy, float *dx, long N, long D, float floor);
void forward_backward(const InputTransform *transform, const Layer *layers, long num_layers, OutputLoss *output,
                      const float *x, float floor, float tiny);
void preconditioned_step(Step *steps, long num_steps, float *scratch, double lr, double max_change);
void update_fisher(FisherUpdate *update, const float *X, long N, long D, long stride, const float *H, const float *W,
                   long R, double tr_XX);
