// sampling: a row of logits as a block sees it: keys in order of value, scans, reductions that do not
// depend on the order of threads.
#pragma once
#include "common.cuh"

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kLoads = 8;  // of 16 bytes, in flight in a thread
constexpr int kCandidates = 3072;
constexpr int kBins = 1024;
constexpr int kMaxTop = 20;

struct Row {  // 72 bytes
  u64 seed;
  u32 position;
  i32 top_k;  // 0: off
  float temperature, top_p, min_p;  // 0: greedy; 1: off; 0: off
  float repetition, presence, frequency;
  i32 history;      // row of the history, -1: none
  i32 adjusted;     // 1: read work, not logits
  i32 bias_begin, bias_end;  // in the lists of biased tokens
  i32 mask_begin, mask_end;  // in the list of masked tokens
  i32 allowed;               // 1 + row of the bitmasks, 0: every token
  i32 unused;
};

struct Candidate {
  u32 key;
  i32 token;
};

// Larger floats have larger keys; NaN and +infinity come out on top.
__device__ __forceinline__ u32 key_of(float x) {
  const u32 bits = __float_as_uint(x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float value_of(u32 key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

struct Scratch {
  Candidate best[kWarps];
  u64 sums[kWarps];
  u64 masses[kThreads];
  u32 low[kBins], high[kBins];  // of 64-bit sums
  u64 total;
  u32 count, kth, nucleus;
  Candidate candidates[kCandidates];
};

__device__ __forceinline__ bool beats(Candidate a, Candidate b) {
  return a.key > b.key || (a.key == b.key && u32(a.token) < u32(b.token));
}

// The largest key of the block, of the smallest token where keys tie; the same in every thread.
__device__ __forceinline__ Candidate block_best(Candidate mine, Scratch& scratch) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    const Candidate other{__shfl_xor_sync(~0u, mine.key, lane), __shfl_xor_sync(~0u, mine.token, lane)};
    if (beats(other, mine)) mine = other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch.best[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = scratch.best[threadIdx.x % kWarps];
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    const Candidate other{__shfl_xor_sync(~0u, mine.key, lane), __shfl_xor_sync(~0u, mine.token, lane)};
    if (beats(other, mine)) mine = other;
  }
  return mine;
}

__device__ __forceinline__ u64 block_total(u64 mine, Scratch& scratch) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) mine += __shfl_xor_sync(~0u, mine, lane);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch.sums[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = threadIdx.x % 32 < kWarps ? scratch.sums[threadIdx.x % 32] : 0;
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) mine += __shfl_xor_sync(~0u, mine, lane);
  return mine;
}

// Calls visit(token, value) for every token of a row, each thread its own, kLoads in flight.
template <class Visit>
__device__ __forceinline__ void scan(const float* row, i32 vocabulary, Visit visit) {
  const int aligned = (reinterpret_cast<u64>(row) & 15) == 0 ? vocabulary / 4 : 0;
  const float4* quads = reinterpret_cast<const float4*>(row);
  for (int i = threadIdx.x; i < aligned; i += kLoads * kThreads) {
    float4 held[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (i + j * kThreads < aligned) held[j] = quads[i + j * kThreads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int token = (i + j * kThreads) * 4;
      if (i + j * kThreads >= aligned) break;
      visit(token, held[j].x), visit(token + 1, held[j].y), visit(token + 2, held[j].z), visit(token + 3, held[j].w);
    }
  }
  for (int token = aligned * 4 + threadIdx.x; token < vocabulary; token += kThreads) visit(token, row[token]);
}

// The tokens that may still be drawn: a list in shared memory, or the whole row.
struct Field {
  const float* row;
  i32 vocabulary;
  float temperature;
  const Candidate* list;
  int listed;  // -1: the whole row

  __device__ __forceinline__ u32 scaled(float x) const { return key_of(__fdiv_rn(x, temperature)); }
  template <class Visit>  // visit(token, key of the scaled logit)
  __device__ __forceinline__ void each(Visit visit) const {
    if (listed >= 0) {
      for (int i = threadIdx.x; i < listed; i += kThreads) visit(list[i].token, list[i].key);
    } else {
      scan(row, vocabulary, [&](int token, float x) { visit(token, scaled(x)); });
    }
  }
};
