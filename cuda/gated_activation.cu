// gated_activation: out = activation(gate) * up, for gate_up rows of gate then up.
//
// Layout   gate_up [T, 2 F], out [T, F], 16-bit elements. -DACTIVATION: 0 SiLU, 1 GELU, 2 GELU by tanh.
// Grid     (T, ceil(F / 4096)) blocks of 256 threads; a thread does two vectors of 8.
// Shared   none.
// Bound by device memory: every byte once.
// Limits   F a multiple of 8.
#include "async.cuh"

#ifndef ACTIVATION
#define ACTIVATION 0
#endif

__device__ __forceinline__ float activate(float x) {
#if ACTIVATION == 0
  return __fdividef(x, 1.f + exp2_fast(-x * kLog2e));
#elif ACTIVATION == 1
  return 0.5f * x * (1.f + erff(x * 0.70710678f));
#else
  const float y = 0.79788456f * (x + 0.044715f * x * x * x);
  return x * (1.f - __fdividef(1.f, 1.f + exp2_fast(2.f * kLog2e * y)));  // (1 + tanh y) / 2
#endif
}

extern "C" __global__ void __launch_bounds__(256)
    gated_activation(const Element* __restrict__ gate_up, Element* __restrict__ out, i32 width) {
  const Element* gate = gate_up + i64(blockIdx.x) * 2 * width;
  Element* target = out + i64(blockIdx.x) * width;
  const int first = (blockIdx.y * 512 + threadIdx.x) * 8;
  let_next_start();
  wait_for_previous();
  Vec16 gates[2], ups[2];
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    const int i = first + v * 2048;
    if (i < width) {
      gates[v] = load16_stream(gate + i);
      ups[v] = load16_stream(gate + width + i);
    }
  }
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    const int i = first + v * 2048;
    if (i >= width) break;
    float a[8], b[8];
    unpack8<Element>(gates[v], a);
    unpack8<Element>(ups[v], b);
#pragma unroll
    for (int j = 0; j < 8; ++j) a[j] = activate(a[j]) * b[j];
    store16(target + i, pack8<Element>(a));
  }
}
