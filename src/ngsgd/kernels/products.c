/* Matrix products and eigenvalues, which are PyTorch's own. */

#include "kernels.h"

/* sgemm and dsyevd, with numbers that may be read as 32 or 64 bits wide. */
typedef void Multiply(const char *, const char *, const long *, const long *, const long *, const float *, const float *,
                      const long *, const float *, const long *, const float *, float *, const long *);
typedef void Diagonalise(const char *, const char *, const long *, double *, const long *, double *, double *,
                         const long *, long *, const long *, long *);
static Multiply *multiply;
static Diagonalise *diagonalise;

/* To be called first: where they are. */
void use(Multiply *sgemm, Diagonalise *dsyevd) {
    multiply = sgemm;
    diagonalise = dsyevd;
}

/* C (M, N) = alpha A B + beta C, of A (M, K) and B (K, N). BLAS, which counts columns first, sees all transposed. */
void product(long M, long N, long K, float alpha, Factor A, Factor B, float beta, float *C, long stride) {
    multiply(&B.op, &A.op, &N, &M, &K, &alpha, B.at, &B.stride, A.at, &A.stride, &beta, C, &stride);
}

/* The eigenvalues (R) of a symmetric matrix, rising; Z (R, R) becomes its eigenvectors, row after row. Given room for
   1 + 6 R + 2 R^2 numbers and 3 + 5 R more; returns 0 if it worked. */
long eigenvectors(double *Z, double *values, double *work, long *more, long R) {
    long work_size = 1 + 6 * R + 2 * R * R, more_size = 3 + 5 * R, failed = 0;
    diagonalise("V", "L", &R, Z, &R, values, work, &work_size, more, &more_size, &failed);
    return failed;
}
