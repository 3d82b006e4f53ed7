// rms_norm: y = x / sqrt(mean(x^2) + eps) * weight; with a residual, residual += x first and that
// is normalised.
//
// Layout   x, residual, out [T, E], weight [E], 16-bit elements.
// Grid     ceil(T / kRowsOfBlock) blocks of THREADS x kRowsOfBlock threads; a thread holds up to VECS vectors of 8 elements.
// Shared   128 bytes, for the sum.
// Bound by device memory: reads x (and residual) once, writes out (and residual) once.
// Limits   E a multiple of 8, at most THREADS * VECS * 8.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS * kRowsOfBlock)
    rms_norm(const Element* x, const Element* weight, Element* residual, Element* out, i32 rows,
             i32 width, float eps) {
  normalize_row<false>(x, weight, nullptr, residual, out, rows, width, eps);
}
