// attention_prefill_plan: the list of query tiles of one step, longest first, for attention_prefill and _sm90.
//
// Computes  for request b with queries cu_seqlens_q[b]..[b+1] and context_lens[b] keys (its chunk included), tiles of
//           `tile_tokens` query tokens; each tile's cost is the number of KV tiles that it sees; a counting sort puts the
//           dear ones first, so that the persistent blocks end together.
// Layout    cu_seqlens_q int32 [B+1], context_lens int32 [B]; plan int4 [1 + tiles]: header {0, 0, tiles, 0}, then
//           {request, first row in q, position of that row, valid tokens | keys after the tile's last << 16 (<= 1023)}.
// Grid      one block of 1024 threads, a warp a request. Shared: 16 KiB of counters.
// Bound     by latency: a few microseconds, once a step; every layer and every replay of a graph uses the same plan.
// Limits    plan must hold 1 + sum(ceil(tokens / tile_tokens)) entries; costs of 2047 tiles and more count as equal.
//           Tiles of one cost come in any order, which no result depends on.

#include "common.cuh"

constexpr int kThreads = 1024;
constexpr int kCosts = 2048;

struct Requests {
    const int* cu_seqlens_q;
    const int* context_lens;
    int count, tile_tokens, tile_keys, window;
};

// Calls visit(cost, entry) for every tile that falls to this thread.
template <class Visit>
__device__ __forceinline__ void each_tile(const Requests& r, Visit& visit) {
    for (int b = threadIdx.x / 32; b < r.count; b += kThreads / 32) {
        const int begin = r.cu_seqlens_q[b], tokens = r.cu_seqlens_q[b + 1] - begin, context = r.context_lens[b];
        const int tiles = (tokens + r.tile_tokens - 1) / r.tile_tokens;
        for (int t = threadIdx.x % 32; t < tiles; t += 32) {
            const int offset = t * r.tile_tokens;
            const int position = context - tokens + offset;
            const int valid = min(r.tile_tokens, tokens - offset);
            const int last = (position + valid + r.tile_keys - 1) / r.tile_keys;
            const int first = r.window > 0 ? max(0, position - r.window + 1) / r.tile_keys : 0;
            const int after = min(context - position - valid, 1023);
            visit(min(last - first, kCosts - 1), make_int4(b, begin + offset, position, valid | after << 16));
        }
    }
}

struct Count {
    int* count;
    __device__ __forceinline__ void operator()(int cost, int4) { atomicAdd(&count[cost], 1); }
};

struct Place {
    int* slot;
    int4* entries;
    __device__ __forceinline__ void operator()(int cost, int4 entry) { entries[atomicAdd(&slot[cost], 1)] = entry; }
};

extern "C" __global__ void __launch_bounds__(kThreads) attention_prefill_plan(
    const int* __restrict__ cu_seqlens_q, const int* __restrict__ context_lens, int4* __restrict__ plan, int num_requests,
    int tile_tokens, int tile_keys, int window) {
    __shared__ int count[kCosts];
    __shared__ int warp_total[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    for (int i = threadIdx.x; i < kCosts; i += kThreads) count[i] = 0;
    __syncthreads();

    const Requests requests = {cu_seqlens_q, context_lens, num_requests, tile_tokens, tile_keys, window};
    Count counter = {count};
    each_tile(requests, counter);
    __syncthreads();

    // Each thread holds two neighbouring costs, dearest first; a block-wide scan gives each cost its first slot.
    const int high = kCosts - 1 - 2 * threadIdx.x;
    const int mine = count[high] + count[high - 1];
    int sum = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) warp_total[warp] = sum;
    __syncthreads();
    int before = sum - mine;
    for (int w = 0; w < warp; ++w) before += warp_total[w];
    const int dear = count[high];
    __syncthreads();
    count[high] = before;
    count[high - 1] = before + dear;
    if (threadIdx.x == kThreads - 1) plan[0] = make_int4(0, 0, before + mine, 0);
    __syncthreads();

    Place placer = {count, plan + 1};
    each_tile(requests, placer);
}
