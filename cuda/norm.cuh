// What rms_norm and layer_norm share: a row held in registers, normalised in one pass.
#pragma once
#include "async.cuh"

#ifndef THREADS
#define THREADS 128
#endif
#ifndef VECS
#define VECS 4
#endif

// A row that one warp can hold is a small thing to start a block for: such rows share one.
constexpr int kRowsOfBlock = THREADS == 32 ? 4 : 1;

// One row of `width` elements by THREADS threads (threadIdx.x), VECS vectors of 8 each at most.
// y = (x - mean) * rsqrt(mean((x - mean)^2) + eps) * weight + bias, mean and bias only if kCentred;
// with a residual, residual += x first, rounded to its type, and that is what is normalised.
template <bool kCentred>
__device__ __forceinline__ void normalize_row(const Element* x, const Element* weight, const Element* bias,
                                              Element* residual, Element* out, i32 rows, i32 width,
                                              float eps) {
  __shared__ float scratch[32];
  const i64 index = i64(blockIdx.x) * kRowsOfBlock + threadIdx.y, row = index * width;
  const int vectors = width / 8;
  let_next_start();
  wait_for_previous();
  if (index >= rows) return;
  float value[VECS][8];
  Vec16 raw[VECS], held[VECS];
#pragma unroll
  for (int v = 0; v < VECS; ++v) {
    const int i = v * THREADS + threadIdx.x;
    raw[v] = held[v] = Vec16{0, 0, 0, 0};
    if (i < vectors) {
      raw[v] = load16_stream(x + row + i * 8);
      if (residual != nullptr) held[v] = load16_stream(residual + row + i * 8);
    }
  }
  float sum = 0.f, squares = 0.f;
#pragma unroll
  for (int v = 0; v < VECS; ++v) {
    unpack8<Element>(raw[v], value[v]);
    if (residual != nullptr) {
      float old[8];
      unpack8<Element>(held[v], old);
#pragma unroll
      for (int j = 0; j < 8; ++j) value[v][j] += old[j];
      held[v] = pack8<Element>(value[v]);
      unpack8<Element>(held[v], value[v]);
      const int i = v * THREADS + threadIdx.x;
      if (i < vectors) store16(residual + row + i * 8, held[v]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += value[v][j], squares += value[v][j] * value[v][j];
  }
  float mean = 0.f;
  if constexpr (kCentred) {
    mean = block_sum<THREADS>(sum, scratch) / width;
    squares = 0.f;
#pragma unroll
    for (int v = 0; v < VECS; ++v) {
      const bool inside = v * THREADS + threadIdx.x < vectors;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        value[v][j] -= mean;
        if (inside) squares += value[v][j] * value[v][j];
      }
    }
  }
  const float scale = rsqrtf(block_sum<THREADS>(squares, scratch) / width + eps);
#pragma unroll
  for (int v = 0; v < VECS; ++v) {
    const int i = v * THREADS + threadIdx.x;
    if (i >= vectors) continue;
    float factor[8], shift[8] = {};
    unpack8<Element>(load16(weight + i * 8), factor);
    if (kCentred && bias != nullptr) unpack8<Element>(load16(bias + i * 8), shift);
#pragma unroll
    for (int j = 0; j < 8; ++j) value[v][j] = value[v][j] * scale * factor[j] + shift[j];
    store16(out + row + i * 8, pack8<Element>(value[v]));
  }
}
