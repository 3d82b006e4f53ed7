// attention_decode: the work map, made on the device once a step.
#pragma once
#include "attention_decode_shape.cuh"

struct Plan {
  int start, length, size, first_split, count;

  // `most`: tokens of a split, if that is less than the request's own length asks for.
  __device__ Plan(int context, int queries, int window, int most) {
    length = context;
    start = window > 0 ? max(0, context - queries - window + 1) / TILE * TILE : 0;
    size = min(split_size(context), most);
    while (length > size * kMaxSplits) size *= 2;
    first_split = start / size;
    count = max(1, (context + size - 1) / size - first_split);
  }
  __device__ int first(int k) const { return k == 0 ? start : (first_split + k) * size; }
  __device__ int end(int k) const { return min(length, (first_split + k + 1) * size); }
  __device__ i64 cost_before(int k) const { return i64(first(k) - start) + i64(k) * kUnitCost; }
  __device__ i64 cost() const { return i64(length - start) + i64(count) * kUnitCost; }
};

// The least splits that leave no more units than runs: 64 tokens and up; kNoLimit if requests' own are as small.
constexpr int kNoLimit = 1 << 30;
__device__ __forceinline__ int spread_size(i64 tokens, int kv_heads, int runs) {
  int size = 64;
  while (size < kBaseSplit && i64(size) * runs < tokens * kv_heads) size *= 2;
  return size < kBaseSplit ? size : kNoLimit;
}

// Sum over the block of 1024, the same in every thread; `scratch` holds a value of each warp. All threads call.
__device__ __forceinline__ i64 block_total(i64 x, i64 (&scratch)[32]) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = scratch[threadIdx.x % 32];
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}

// Units are ordered by request, then head, then split, so that a run mostly holds whole requests and heads.
// With `spread`, splits are smaller while the batch would leave blocks idle: a request's bits then depend on it.
// Grid 1, block 1024. Writes splits[], run_start[runs + 1] and run_first[runs].
extern "C" __global__ void __launch_bounds__(1024)
    attention_decode_plan(const i32* __restrict__ context_lens, Split* splits, RunStart* run_start,
                          Split* run_first, i32 batch, i32 queries, i32 window, i32 kv_heads,
                          i32 runs, i32 spread) {
  __shared__ i32 warp_count[32];
  __shared__ i64 warp_cost[32];
  __shared__ i32 chunk_base[1024];
  __shared__ i64 chunk_cost[1024];
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;

  int most = kNoLimit;
  if (spread) {
    i64 tokens = 0;
    for (int b = tid; b < batch; b += 1024) {
      const Plan plan(context_lens[b], queries, window, kNoLimit);
      tokens += plan.length - plan.start;
    }
    most = spread_size(block_total(tokens, warp_cost), kv_heads, runs);
  }
  // Total cost first: the runs' borders depend on it.
  i64 total = 0;
  for (int b = tid; b < batch; b += 1024) total += Plan(context_lens[b], queries, window, most).cost();
  total = block_total(total, warp_cost) * kv_heads;

  int base = 0;
  i64 base_cost = 0;
  for (int chunk = 0; chunk < batch; chunk += 1024) {
    __syncthreads();
    const int b = chunk + tid;
    int count = 0;
    i64 cost = 0;
    if (b < batch) {
      const Plan plan(context_lens[b], queries, window, most);
      count = plan.count;
      cost = plan.cost();
    }
    int count_scan = count;
    i64 cost_scan = cost;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      const int other = __shfl_up_sync(~0u, count_scan, o);
      const i64 other_cost = __shfl_up_sync(~0u, cost_scan, o);
      if (lane >= o) count_scan += other, cost_scan += other_cost;
    }
    if (lane == 31) warp_count[warp] = count_scan, warp_cost[warp] = cost_scan;
    __syncthreads();
    int before = 0, all = 0;
    i64 before_cost = 0, all_cost = 0;
    for (int w = 0; w < 32; ++w) {
      if (w < warp) before += warp_count[w], before_cost += warp_cost[w];
      all += warp_count[w], all_cost += warp_cost[w];
    }
    chunk_base[tid] = base + before + count_scan - count;
    chunk_cost[tid] = base_cost + before_cost + cost_scan - cost;
    __syncthreads();

    for (int r = warp; r < 1024 && chunk + r < batch; r += 32) {
      const Plan plan(context_lens[chunk + r], queries, window, most);
      for (int k = lane; k < plan.count; k += 32) {
        const int index = chunk_base[r] + k;
        splits[index] = Split{chunk + r, plan.first(k), plan.end(k), k, plan.count, plan.length, {0, 0}};
        const i64 unit = i64(plan.end(k) - plan.first(k)) + kUnitCost;
        i64 low = chunk_cost[r] * kv_heads + plan.cost_before(k);
        for (int h = 0; h < kv_heads; ++h, low += plan.cost()) {
          // Run i begins where the cost reaches total * i / runs, at the nearer unit border.
          i64 run = (low * runs + total - 1) / total;
          for (; run < runs && run * total < (low + unit) * runs; ++run) {
            RunStart start{chunk_base[r] * kv_heads + h * plan.count + k, index, h, run};
            if (2 * (run * total - low * runs) >= unit * runs) {
              ++start.unit, ++start.index;
              if (k + 1 == plan.count && h + 1 < kv_heads) start.index -= plan.count, ++start.head;
              else if (k + 1 == plan.count) start.head = 0;
            }
            run_start[run] = start;
          }
        }
      }
    }
    base += all;
    base_cost += all_cost;
  }
  if (tid == 0) run_start[runs] = RunStart{base * kv_heads, 0, 0, runs};
  __syncthreads();
  for (int run = tid; run < runs; run += 1024) {
    const RunStart start = run_start[run];
    if (start.unit == base * kv_heads) continue;  // nothing is left for it
    const Split split = splits[start.index];
    run_first[run] = split;
    if (split.split == 0) continue;
    int low = 0, high = run;  // the last run that begins no later than the request and head did
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (run_start[middle].unit <= start.unit - split.split ? low : high) = middle;
    }
    run_start[run].origin = low;
  }
}
