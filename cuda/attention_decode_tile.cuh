// attention_decode: what one consumer warp does with one tile of keys in shared memory.
#pragma once
#include "attention_decode_shape.cuh"

// One warp's query rows as tensor-core fragments, from a unit slot in shared memory (swizzled like
// keys, panels of kQueryRows rows).
struct Queries {
  static constexpr int kWords = kNarrow ? 2 : 4;
  u32 held[kSharedQ ? 1 : kDimSteps][kWords];
  u32 shared;  // this lane's ldmatrix address

  __device__ __forceinline__ void load(u32 buffer, int row_tile, int lane) {
    const int id = lane / 8, within = lane % 8;
    if constexpr (kNarrow) {
      const u32 at = buffer + within * 128 + ((id ^ within) << 4);
#pragma unroll
      for (int k = 0; k < kDimSteps; k += 2) {
        u32 x[4];
        ldmatrix4(x, (at ^ ((2 * k & 7) << 4)) + 2 * k / 8 * kQueryPanelBytes);
        held[k][0] = x[0], held[k][1] = x[1];
        held[k + 1][0] = x[2], held[k + 1][1] = x[3];
      }
    } else {
      shared = buffer + (row_tile * 16 + within + 8 * (id & 1)) * 128 + (((id / 2) ^ within) << 4);
      if constexpr (!kSharedQ) {
#pragma unroll
        for (int k = 0; k < kDimSteps; ++k) {
          u32 x[4];
          ldmatrix4(x, (shared ^ ((2 * k & 7) << 4)) + 2 * k / 8 * kQueryPanelBytes);
#pragma unroll
          for (int r = 0; r < kWords; ++r) held[k][r] = x[r];
        }
      }
    }
  }
  __device__ __forceinline__ void fragment(int k, u32 (&a)[4]) const {
    if constexpr (kSharedQ) {
      ldmatrix4(a, (shared ^ ((2 * k & 7) << 4)) + 2 * k / 8 * kQueryPanelBytes);
    } else {
#pragma unroll
      for (int r = 0; r < kWords; ++r) a[r] = held[k][r];
    }
  }
};

__device__ __forceinline__ float capped(float score, const Params& p) {
  // cap * tanh(s * scale / cap), in base-2 units; tanh(x) = 1 - 2 / (1 + exp(2x)).
  const float x = score * p.scale_log2 / p.soft_cap;  // s * scale / cap * log2(e)
  return p.soft_cap * kLog2e * (1.f - __fdividef(2.f, 1.f + exp2_fast(2.f * x)));
}

// The running state of one consumer warp. A lane holds two rows of it: narrow, rows
// 2 * (lane % 4) and the next, of columns lane / 4 + 8i; else rows lane / 4 and lane / 4 + 8.
struct State {
  float out[kOutTiles][4];
  float max[2], sum[2];

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0.f;
    max[0] = max[1] = kNegInf;
    sum[0] = sum[1] = 0.f;
  }
  // Writes the warp's rows to a merge buffer and their statistics beside it.
  __device__ __forceinline__ void store(float* buffer, Partial* stats, int rows, const int (&my_row)[2],
                                        int lane) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = my_row[i];
      if (row >= rows) continue;
      float* target = buffer + row * kMergeStride;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
        if constexpr (kNarrow) {
          target[n * 16 + lane / 4] = out[n][i];
          target[n * 16 + lane / 4 + 8] = out[n][i + 2];
        } else {
          *reinterpret_cast<float2*>(target + n * 8 + (lane % 4) * 2) = make_float2(out[n][2 * i], out[n][2 * i + 1]);
        }
      }
      if (kNarrow ? lane / 4 == 0 : lane % 4 == 0) stats[row] = Partial{max[i], sum[i]};
    }
  }
  // Which of the lane's two rows accumulator word c belongs to.
  static __device__ __forceinline__ int row_of(int c) { return kNarrow ? c & 1 : c / 2; }
};

constexpr int kScoreTiles = kNarrow ? TILE / 16 : TILE / 8;

// A row is spread over lanes that differ in these bits.
template <class Fold>
__device__ __forceinline__ float across_lanes(float x, Fold fold) {
#pragma unroll
  for (int i = 0; i < (kNarrow ? 3 : 2); ++i) x = fold(x, __shfl_xor_sync(~0u, x, kNarrow ? 4 << i : 1 << i));
  return x;
}

__device__ __forceinline__ u32 transpose8x8(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// score = keys . queries, for one tile of keys at `keys` in shared memory.
__device__ __forceinline__ void multiply_keys(float (&score)[kScoreTiles][4], const Queries& queries, u32 keys,
                                              int lane) {
#pragma unroll
  for (int n = 0; n < kScoreTiles; ++n) score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0.f;
  // swizzled() of this lane's row and chunk, apart from what the loops add or flip.
  const int id = lane / 8, within = lane % 8;
  const int row_bit = kNarrow ? id & 1 : id / 2, chunk_bit = kNarrow ? id / 2 : id & 1;
  const u32 key_lane = keys + (within + 8 * row_bit) * 128 + ((chunk_bit ^ within) << 4);
#pragma unroll
  for (int k = 0; k < kDimSteps; ++k) {
    const u32 at = (key_lane ^ ((2 * k & 7) << 4)) + 2 * k / 8 * kPanelBytes;
    u32 q[4];
    queries.fragment(k, q);
#pragma unroll
    for (int n = 0; n < kKeySteps; ++n) {
      u32 x[4];
      ldmatrix4(x, at + n * 2048);
      if constexpr (kNarrow) {
        mma16816<Element>(score[n], x, q[0], q[1]);
      } else {
        mma16816<Element>(score[2 * n], q, x[0], x[1]);
        mma16816<Element>(score[2 * n + 1], q, x[2], x[3]);
      }
    }
  }
}

// A mask of the two keys that a lane holds in one word: those before `tail`.
__device__ __forceinline__ u32 keys_before(int tail, int key) {
  return key + 1 < tail ? ~0u : key < tail ? 0xffffu : 0u;
}

// out += weights . values; `weight` holds probabilities where multiply_keys left scores. With kTail, only the
// keys before `tail` count: what lies past them in shared memory may be anything, and 0 * NaN is NaN.
template <bool kTail>
__device__ __forceinline__ void multiply_values(State& state, const float (&weight)[kScoreTiles][4], u32 values,
                                                int tail, int lane) {
  const int id = lane / 8, within = lane % 8;
  const int row_bit = kNarrow ? id / 2 : id & 1, chunk_bit = kNarrow ? id & 1 : id / 2;
  const u32 value_lane = values + (within + 8 * row_bit) * 128 + ((chunk_bit ^ within) << 4);
#pragma unroll
  for (int k = 0; k < kKeySteps; ++k) {
    u32 w[4];
    if constexpr (kNarrow) {
      w[0] = transpose8x8(pack2<Element>(weight[k][0], weight[k][1]));
      w[1] = transpose8x8(pack2<Element>(weight[k][2], weight[k][3]));
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r)
        w[r] = pack2<Element>(weight[2 * k + r / 2][2 * (r & 1)], weight[2 * k + r / 2][2 * (r & 1) + 1]);
    }
#pragma unroll
    for (int n = 0; n < kDimSteps; ++n) {
      u32 x[4];
      ldmatrix4_trans(x, (value_lane ^ ((2 * n & 7) << 4)) + 2 * n / 8 * kPanelBytes + k * 2048);
      if constexpr (kTail) {
#pragma unroll
        for (int r = 0; r < 4; ++r)
          x[r] &= keys_before(tail, k * 16 + (kNarrow ? r / 2 : r & 1) * 8 + lane % 4 * 2);
      }
      if constexpr (kNarrow) {
        mma16816<Element>(state.out[n], x, w[0], w[1]);
      } else {
        mma16816<Element>(state.out[2 * n], w, x[0], x[1]);
        mma16816<Element>(state.out[2 * n + 1], w, x[2], x[3]);
      }
    }
  }
}

// Adds one tile of keys in shared memory at `keys` (K, then V) to the state. `tail`: tokens that the tile holds.
// `least[i]`, `limit[i]`: tokens of the tile that the lane's row i may see, [least, limit).
__device__ __forceinline__ void add_tile(const Params& p, State& state, const Queries& queries, u32 keys, int lane,
                                         int tail, bool masked, const int (&least)[2], const int (&limit)[2]) {
  float score[kScoreTiles][4];
  multiply_keys(score, queries, keys, lane);
  float highest[2] = {kNegInf, kNegInf};
#pragma unroll
  for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int i = State::row_of(c);
      float s = p.soft_cap > 0.f ? capped(score[n][c], p) : score[n][c] * p.scale_log2;
      const int key = kNarrow ? n * 16 + lane / 4 + 8 * (c / 2) : n * 8 + (lane % 4) * 2 + (c & 1);
      if (masked && (key < least[i] || key >= limit[i])) s = kNegInf;
      score[n][c] = s;
      highest[i] = fmaxf(highest[i], s);
    }
  }
  float base[2], shrink[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float m = fmaxf(across_lanes(highest[i], [](float a, float b) { return fmaxf(a, b); }), state.max[i]);
    base[i] = m == kNegInf ? 0.f : m;
    shrink[i] = exp2_fast(state.max[i] - base[i]);
    state.max[i] = m;
    state.sum[i] *= shrink[i];
  }
  if (__any_sync(~0u, shrink[0] != 1.f || shrink[1] != 1.f)) {
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) state.out[n][c] *= shrink[State::row_of(c)];
    }
  }
#pragma unroll
  for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int i = State::row_of(c);
      score[n][c] = exp2_fast(score[n][c] - base[i]);
      state.sum[i] += score[n][c];
    }
  }
  if (tail < TILE) {
    multiply_values<true>(state, score, keys + kHalfStage, tail, lane);
  } else {
    multiply_values<false>(state, score, keys + kHalfStage, tail, lane);
  }
}
