/* Matrix products and eigenvalues, computed by the libraries inside PyTorch. */

#include "kernels.h"

/* sgemm and dsyevd. On little-endian machines their integers may be 32 or 64 bits wide. */
typedef void Sgemm(const char *, const char *, const long *, const long *, const long *, const float *, const float *,
                   const long *, const float *, const long *, const float *, float *, const long *);
typedef void Dsyevd(const char *, const char *, const long *, double *, const long *, double *, double *, const long *,
                    long *, const long *, long *);
static Sgemm *sgemm;
static Dsyevd *dsyevd;

/* Sets the functions to call; must be called before anything else. */
void set_blas(void *sgemm_address, void *dsyevd_address) {
    sgemm = (Sgemm *)sgemm_address;
    dsyevd = (Dsyevd *)dsyevd_address;
}

/* C (M, N) = alpha A B + beta C, with A (M, K) and B (K, N). BLAS is column-major, so it computes the transpose. */
void matmul(long M, long N, long K, float alpha, Factor A, Factor B, float beta, float *C, long stride) {
    sgemm(&B.op, &A.op, &N, &M, &K, &alpha, B.data, &B.stride, A.data, &A.stride, &beta, C, &stride);
}

/* Computes the eigenvalues (R) of a symmetric matrix in ascending order and overwrites Z (R, R) with the eigenvectors,
   one in each row. `work` holds 1 + 6 R + 2 R^2 elements and `integer_work` 3 + 5 R. Returns 0 on success. */
long eigh(double *Z, double *values, double *work, long *integer_work, long R) {
    long work_size = 1 + 6 * R + 2 * R * R, integer_work_size = 3 + 5 * R, failed = 0;
    dsyevd("V", "L", &R, Z, &R, values, work, &work_size, integer_work, &integer_work_size, &failed);
    return failed;
}
