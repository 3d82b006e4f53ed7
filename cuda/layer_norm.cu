// layer_norm: y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias; with a residual, residual += x
// first and that is normalised.
//
// Layout   x, residual, out [T, E], weight, bias [E] (bias may be null), 16-bit elements.
// Grid     ceil(T / kRowsOfBlock) blocks of THREADS x kRowsOfBlock threads; a thread holds up to VECS vectors of 8 elements.
// Shared   128 bytes, for the sums.
// Bound by device memory: reads x (and residual) once, writes out (and residual) once.
// Limits   E a multiple of 8, at most THREADS * VECS * 8.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS * kRowsOfBlock)
    layer_norm(const Element* x, const Element* weight, const Element* bias, Element* residual, Element* out,
               i32 rows, i32 width, float eps) {
  normalize_row<true>(x, weight, bias, residual, out, rows, width, eps);
}
