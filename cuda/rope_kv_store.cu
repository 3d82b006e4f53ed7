// rope_kv_store: rotate queries and keys (after an RMS norm of each head, if given), and store keys
// and values into their slots of the KV pool, in one pass over qkv.
//
// Layout   qkv [T, (H + 2 H_kv) D] (queries, keys, values), queries [T, H, D], cos_sin float32
//          [positions, R] (cosines, then sines), R = rotary_dim; `kv` is this layer in block 0 of
//          [blocks, layers, 2, H_kv, block_size, D]; slot = block * block_size + offset, < 0: no store.
// Pairs    (i, i + R/2), or with -DINTERLEAVED=1 (2i, 2i + 1). Entries from R on pass unrotated.
// Grid     blocks of 256 threads, `tokens` tokens each, all brought to shared memory before the first is
//          turned: registers alone would not hold enough loads to keep the memory busy. A head is LANES lanes
//          (D / 8 rounded up to a power of two) of one warp, 8 elements each.
// Overlap  waits before it reads qkv; attention_decode behind it fills its ring with older keys meanwhile.
// Shared   tokens * ((H + 2 H_kv) * D * 2 + R * 4) bytes.
// Bound by device memory: qkv read once, queries and KV written once.
// Limits   D a multiple of 8, at most 256; R a multiple of 16 (of 8 if interleaved), at most D.
#include "async.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#ifndef INTERLEAVED
#define INTERLEAVED 0
#endif

constexpr int kThreads = 256;
constexpr int kVectors = HEAD_DIM / 8;
constexpr int kLanes = kVectors <= 8 ? 8 : kVectors <= 16 ? 16 : 32;
constexpr int kHeadsAtOnce = kThreads / kLanes;
constexpr int kAngles = INTERLEAVED ? 4 : 8;  // that 8 elements turn by

template <int kCount>
__device__ __forceinline__ void load_angles(float (&x)[kCount], const float* source) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(source + i);
    x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
  }
}

// 8 elements of a head, times the norm's scale and weights where there is one.
__device__ __forceinline__ void load_normed(float (&x)[8], const Vec16& raw, float scale, const Element* weights) {
  unpack8<Element>(raw, x);
  if (weights == nullptr) return;
  float weight[8];
  unpack8<Element>(load16(weights), weight);
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] *= scale * weight[j];
}

// Turns the 8 elements of a lane's vector; `partner` is the vector that holds the other halves of their pairs.
__device__ __forceinline__ void turn(float (&x)[8], const float (&partner)[8], bool second, const float* angles,
                                     int half) {
  float cosines[kAngles], sines[kAngles];
  load_angles(cosines, angles);
  load_angles(sines, angles + half);
#if INTERLEAVED
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float a = x[2 * j], b = x[2 * j + 1];
    x[2 * j] = a * cosines[j] - b * sines[j];
    x[2 * j + 1] = b * cosines[j] + a * sines[j];
  }
#else
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = x[j] * cosines[j] + (second ? partner[j] * sines[j] : -partner[j] * sines[j]);
#endif
}

extern "C" __global__ void __launch_bounds__(kThreads)
    rope_kv_store(const Element* __restrict__ qkv, const i32* __restrict__ positions,
                  const i32* __restrict__ slots, const float* __restrict__ cos_sin,
                  const Element* __restrict__ query_norm, const Element* __restrict__ key_norm,
                  Element* __restrict__ queries, Element* __restrict__ kv, i64 block_stride, i32 all_tokens,
                  i32 tokens, i32 heads, i32 kv_heads, i32 block_shift, i32 rotary_dim, float eps) {
  extern __shared__ __align__(16) u8 memory[];
  let_next_start();
  const int all_heads = heads + 2 * kv_heads, width = all_heads * HEAD_DIM;
  const int first = blockIdx.x * tokens, count = min(tokens, all_tokens - first);
  const Vec16* rows = reinterpret_cast<const Vec16*>(memory);
  const float* angles = reinterpret_cast<const float*>(memory + i64(tokens) * width * 2);
  for (int i = threadIdx.x; i < count * (rotary_dim / 4); i += kThreads) {
    const int token = i / (rotary_dim / 4), four = i % (rotary_dim / 4);
    cp_async16(shared_address(angles) + i * 16, cos_sin + i64(positions[first + token]) * rotary_dim + four * 4, true);
  }
  wait_for_previous();
  for (int i = threadIdx.x; i < count * (width / 8); i += kThreads)
    cp_async16(shared_address(rows) + i * 16, qkv + i64(first) * width + i * 8, true);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  const int vector = threadIdx.x % kLanes, half_vectors = rotary_dim / 16;
  const bool second = !INTERLEAVED && vector >= half_vectors;
  const int partner = vector + (INTERLEAVED ? 0 : second ? -half_vectors : half_vectors);
  const int angle = (second ? vector - half_vectors : vector) * kAngles;
  for (int i = 0; i < count; ++i) {
    const i32 token = first + i, slot = slots[token];
    const i64 block = slot >> block_shift, offset = slot & ((1 << block_shift) - 1);
    // Every lane of a warp stays in the loop, for the shuffles.
    for (int base = 0; base < all_heads; base += kHeadsAtOnce) {
      const int head = base + threadIdx.x / kLanes;
      const bool mine = head < all_heads && vector < kVectors, is_value = head >= heads + kv_heads;
      const Vec16* row = rows + (i * all_heads + head) * kVectors;
      Vec16 result = mine ? row[vector] : Vec16{0, 0, 0, 0};
      const Element* norm = is_value ? nullptr : head < heads ? query_norm : key_norm;
      float scale = 1.f, x[8];
      if (query_norm != nullptr) {
        unpack8<Element>(result, x);
        float squares = 0.f;
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += x[j] * x[j];
#pragma unroll
        for (int lane = kLanes / 2; lane > 0; lane >>= 1) squares += __shfl_xor_sync(~0u, squares, lane);
        scale = rsqrtf(squares / HEAD_DIM + eps);
      }
      if (!mine) continue;
      if (!is_value) {
        load_normed(x, result, scale, norm == nullptr ? nullptr : norm + vector * 8);
        if (vector * 8 < rotary_dim) {
          float other[8];
          if (!INTERLEAVED) load_normed(other, row[partner], scale, norm == nullptr ? nullptr : norm + partner * 8);
          turn(x, other, second, angles + i * rotary_dim + angle, rotary_dim / 2);
        }
        result = pack8<Element>(x);
      }
      if (head < heads) {
        store16(queries + (i64(token) * heads + head) * HEAD_DIM + vector * 8, result);
      } else if (slot >= 0) {
        const int which = head - heads;  // of K heads, then V heads, as the pool has them
        store16(kv + block * block_stride + ((i64(which) << block_shift) + offset) * HEAD_DIM + vector * 8, result);
      }
    }
  }
}
