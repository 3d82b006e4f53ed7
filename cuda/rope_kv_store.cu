// rope_kv_store: rotate queries and keys (after an RMS norm of each head, if given), and store keys
// and values into their slots of the KV pool, in one pass over qkv.
//
// Layout   qkv [T, (H + 2 H_kv) D] (queries, keys, values), queries [T, H, D], cos_sin float32
//          [positions, R] (cosines, then sines), R = rotary_dim; `kv` is this layer in block 0 of
//          [blocks, layers, 2, H_kv, block_size, D]; slot = block * block_size + offset, < 0: no store.
// Pairs    (i, i + R/2), or with -DINTERLEAVED=1 (2i, 2i + 1). Entries from R on pass unrotated.
// Grid     T blocks of 256 threads. A head is LANES lanes (D / 8 rounded up to a power of two) of one
//          warp, 8 elements each; partners meet by shuffle.
// Shared   none.
// Bound by device memory: qkv read once, queries and KV written once.
// Limits   D a multiple of 8, at most 256; R a multiple of 16 (of 8 if interleaved), at most D.
#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#ifndef INTERLEAVED
#define INTERLEAVED 0
#endif

constexpr int kVectors = HEAD_DIM / 8;
constexpr int kLanes = kVectors <= 8 ? 8 : kVectors <= 16 ? 16 : 32;
constexpr int kHeadsAtOnce = 256 / kLanes;
constexpr int kAhead = 3;  // loads in flight

extern "C" __global__ void __launch_bounds__(256)
    rope_kv_store(const Element* __restrict__ qkv, const i32* __restrict__ positions,
                  const i32* __restrict__ slots, const float* __restrict__ cos_sin,
                  const Element* __restrict__ query_norm, const Element* __restrict__ key_norm,
                  Element* __restrict__ queries, Element* __restrict__ kv, i64 block_stride, i32 heads, i32 kv_heads,
                  i32 block_shift, i32 rotary_dim, float eps) {
  const i32 token = blockIdx.x;
  const int vector = threadIdx.x % kLanes;
  const int all_heads = heads + 2 * kv_heads;
  const auto load_head = [&](int head) {
    if (head >= all_heads || vector >= kVectors) return Vec16{0, 0, 0, 0};
    return load16_stream(qkv + (i64(token) * all_heads + head) * HEAD_DIM + vector * 8);
  };
  // All of a block's loads are under way before the first is used.
  Vec16 ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) ahead[i] = load_head(i * kHeadsAtOnce + threadIdx.x / kLanes);
  const i32 slot = slots[token];
  const float* cosines = cos_sin + i64(positions[token]) * rotary_dim;
  const float* sines = cosines + rotary_dim / 2;
  const i64 block = slot >> block_shift, offset = slot & ((1 << block_shift) - 1);
  // Every lane of a warp stays in the loop, for the shuffles.
#pragma unroll 1
  for (int base = 0; base < all_heads; base += kHeadsAtOnce) {
    const int head = base + threadIdx.x / kLanes;
    const bool mine = head < all_heads && vector < kVectors;
    const Vec16 raw = ahead[0];
#pragma unroll
    for (int i = 1; i < kAhead; ++i) ahead[i - 1] = ahead[i];
    ahead[kAhead - 1] = load_head(head + kAhead * kHeadsAtOnce);
    const bool is_value = head >= heads + kv_heads;
    float x[8];
    unpack8<Element>(raw, x);
    if (query_norm != nullptr) {
      float squares = 0.f;
#pragma unroll
      for (int j = 0; j < 8; ++j) squares += x[j] * x[j];
#pragma unroll
      for (int lane = kLanes / 2; lane > 0; lane >>= 1) squares += __shfl_xor_sync(~0u, squares, lane);
      if (mine && !is_value) {
        const float scale = rsqrtf(squares / HEAD_DIM + eps);
        float weight[8];
        unpack8<Element>(load16((head < heads ? query_norm : key_norm) + vector * 8), weight);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] *= scale * weight[j];
      }
    }
    const bool turns = vector * 8 < rotary_dim && !is_value && mine;
#if INTERLEAVED
    if (turns) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float c = cosines[vector * 4 + j], s = sines[vector * 4 + j], a = x[2 * j], b = x[2 * j + 1];
        x[2 * j] = a * c - b * s;
        x[2 * j + 1] = b * c + a * s;
      }
    }
#else
    const int half_vectors = rotary_dim / 16;
    const bool second = vector >= half_vectors;
    const int lane = threadIdx.x % 32;
    const int partner = turns ? (second ? lane - half_vectors : lane + half_vectors) : lane;
    const int angle = (second ? vector - half_vectors : vector) * 8;
    float other[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) other[j] = __shfl_sync(~0u, x[j], partner);
    if (turns) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float c = cosines[angle + j], s = sines[angle + j];
        x[j] = x[j] * c + (second ? other[j] * s : -other[j] * s);
      }
    }
#endif
    if (!mine) continue;
    const Vec16 result = is_value ? raw : pack8<Element>(x);
    if (head < heads) {
      store16(queries + (i64(token) * heads + head) * HEAD_DIM + vector * 8, result);
    } else if (slot >= 0) {
      const int which = head - heads;  // of K heads, then V heads, as the pool has them
      store16(kv + block * block_stride + ((i64(which) << block_shift) + offset) * HEAD_DIM + vector * 8, result);
    }
  }
}
