// attention_prefill_sm90: causal attention of a chunk of query tokens over a paged KV cache, for Hopper (sm_90a).
//
// Computes  out[t, h] = softmax(scale * q[t, h] . K + mask) V  for every query token t of every request, where K and V
// are the request's keys and values so far, the chunk's own included (already stored), and a token at position p sees
// keys 0..p (bottom-right causal), or p-window+1..p. Options: a tanh soft cap on the scores, one sink logit a head.
//
// Layout  q, out [T, H, D] (q may have any token stride); pool [num_blocks, L, 2, H_kv, block_size, D];
//         block_tables int32 [B, max_blocks], pad -1; plan: int4 header {next, done, num_tiles, 0}, then one int4 a query
//         tile, longest first {request, first row in q, position of that row, valid tokens | valid keys after the
//         tile's last << 16} (made by attention_prefill_plan; the counters reset themselves, so a plan serves every
//         layer and every graph replay, but not two launches at once).
// Grid    one block a multiprocessor, persistent; work items (query tile, group of PACK heads) are taken from a counter.
// Block   a producer warpgroup (one warp issues TMA) and kConsumers consumer warpgroups of 64 rows each. A query tile is
//         64 * kConsumers / PACK tokens of PACK query heads that share one KV head.
// Shared  kStagesQ x Q [M, D] + kStages x (K [N, D] + V [N, D]) in swizzled columns of 64 elements; D = 96 takes 128.
// Flow    Consumers take turns at issuing (ping-pong): S of tile n and O += P V of tile n+1 are issued together, then
//         the softmax of tile n runs under that product and under the others'. P never leaves registers. Below the
//         diagonal no maximum is taken: see step() and Rows.
// Bound   by the tensor cores for D >= 128 (4 D flops for each visible score), by exp2 for D = 64 (16 a clock).
// Order   KV tiles are aligned to absolute positions and taken from the last to the first; a tile that a row does not
//         see changes nothing in it. So a row's result does not depend on its neighbours, on the batch or on chunk cuts.
// Limits  D in 64, 96, 128, 256; block_size in 16, 32, 64, 128; H / H_kv any, PACK a power of two that divides it.
//         Keys past the context are never used: blocks past it are not read, and the rest of its last block is zeroed.
//         For other architectures this file is empty: the portable kernel is attention_prefill.cu.
// Source  Shah et al. 2024, "FlashAttention-3", algorithm 2; Dao 2023, "FlashAttention-2" (the online softmax).

#include "attention_prefill.cuh"
#include "async.cuh"
#include "sm90_wgmma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace sm90;

namespace {

constexpr int kDim = HEAD_DIM;
constexpr int kColumns = (kDim + 63) / 64;                   // of 64 elements
constexpr int kConsumers = kDim == 64 && !SOFT_CAP ? 3 : 2;  // three leave too few registers for a soft cap
constexpr int kRows = 64 * kConsumers;
static_assert(kRows % PACK == 0, "a tile holds whole tokens");
constexpr int kKeys = kDim == 256 ? 64 : 128;
constexpr int kStagesQ = kDim == 256 ? 1 : 2;
constexpr int kStages = kDim == 64 ? 3 : 2;  // of K, and of V
constexpr int kBoxRows = BLOCK_SIZE < kKeys ? BLOCK_SIZE : kKeys;
constexpr int kBoxes = kKeys / kBoxRows;
static_assert(kBoxes * kColumns <= 32, "one lane of the producer warp issues one box");
constexpr int kColumnQ = kRows * 128;  // bytes
constexpr int kColumnKV = kKeys * 128;
constexpr int kBytesQ = kColumns * kColumnQ;
constexpr int kBytesKV = kColumns * kColumnKV;
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kScores = kKeys / 2;  // accumulators a thread
constexpr int kOuts = kDim / 2;
constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 24;
constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 240;
constexpr int kTurnBarrier = 1;   // one for each consumer warpgroup
constexpr int kGroupBarrier = 5;  // one for each consumer warpgroup

struct Barriers {
    u64 full_q[kStagesQ], empty_q[kStagesQ];
    u64 full_k[kStages], empty_k[kStages], full_v[kStages], empty_v[kStages];
    u64 full_item[2], empty_item[2];
    int4 item[2];
    int head[2];
};

template <int kCount>
struct Ring {  // a stage and the parity of its phase
    int stage = 0;
    u32 phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == kCount) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// One warpgroup's view of the K and V stages, and its turn at the tensor cores.
struct Consumer {
    Barriers& bars;
    u32 smem_v;
    u64 q_descs, k_descs, v_descs;  // of stage 0
    int lane, quad, my_turn, next_turn, my_group;
    Ring<kStagesQ> q_ring;
    Ring<kStages> k_ring, v_ring;

    __device__ __forceinline__ void wait_q() { barrier_wait(shared_address(&bars.full_q[q_ring.stage]), q_ring.phase); }
    __device__ __forceinline__ void wait_k() { barrier_wait(shared_address(&bars.full_k[k_ring.stage]), k_ring.phase); }
    __device__ __forceinline__ void wait_v() { barrier_wait(shared_address(&bars.full_v[v_ring.stage]), v_ring.phase); }

    __device__ __forceinline__ void release_q() {
        if (lane == 0) barrier_arrive(shared_address(&bars.empty_q[q_ring.stage]));
        q_ring.next();
    }
    __device__ __forceinline__ void release_k() {
        if (lane == 0) barrier_arrive(shared_address(&bars.empty_k[k_ring.stage]));
        k_ring.next();
    }
    __device__ __forceinline__ void release_v() {
        if (lane == 0) barrier_arrive(shared_address(&bars.empty_v[v_ring.stage]));
        v_ring.next();
    }

    __device__ __forceinline__ void issue_scores(float (&s)[kScores]) {
        const u64 q_desc = q_descs + q_ring.stage * (kBytesQ / 16);
        const u64 k_desc = k_descs + k_ring.stage * (kBytesKV / 16);
        wgmma_hold(s);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kDim / 16; ++k)
            Wgmma<kKeys>::keys(s, q_desc + ((k / 4) * kColumnQ + (k % 4) * 32) / 16,
                               k_desc + ((k / 4) * kColumnKV + (k % 4) * 32) / 16, k > 0);
        wgmma_commit();
    }
    __device__ __forceinline__ void issue_values(float (&o)[kOuts], u32 (&p)[kScores / 2]) {
        const u64 v_desc = v_descs + v_ring.stage * (kBytesKV / 16);
        wgmma_hold(o);
        wgmma_hold(p);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k)
            Wgmma<kDim>::values(o, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3], v_desc + k * 2048 / 16);
        wgmma_commit();
    }

    // The first tile of an item: S = Q K, and its softmax.
    __device__ __forceinline__ void begin(float (&s)[kScores], u32 (&p)[kScores / 2], Rows& rows, Scale scale, int n,
                                          int window) {
        wait_k();
        named_sync(my_turn, 256);
        issue_scores(s);
        named_arrive(next_turn, 256);
        wgmma_wait<0>();
        wgmma_hold(s);
        release_k();
        float alpha0, alpha1;
        softmax<true>(s, rows, scale, n * kKeys + quad * 2, window, alpha0, alpha1);
        pack(s, p);
    }

    // S of tile n and O += P V of tile n + 1; then the softmax of tile n.
    template <bool kMasked>
    __device__ __forceinline__ void step(float (&s)[kScores], u32 (&p)[kScores / 2], float (&o)[kOuts], Rows& rows,
                                         Scale scale, int n, int window) {
        wait_k();
        named_sync(my_turn, 256);
        issue_scores(s);
        wait_v();
        issue_values(o, p);
        named_arrive(next_turn, 256);
        wgmma_wait<1>();
        wgmma_hold(s);
        float alpha0 = 1.0f, alpha1 = 1.0f;
        bool moved;
        if constexpr (kMasked) {
            release_k();
            moved = softmax<true>(s, rows, scale, n * kKeys + quad * 2, window, alpha0, alpha1);
        } else {
            // Taken for granted that no row's top has to move; the sums tell.
            cap_scores(s, scale);
            exponentiate(s, rows.top0, rows.top1, scale);
            float l0, l1;
            add_up(s, l0, l1);
            // A product is the whole warpgroup's, so the answer must be too.
            moved = named_any(my_group, 128, l0 >= kLargest || l1 >= kLargest);
            if (moved) {  // seldom: the scores once more, and in earnest
                wgmma_wait<0>();
                wgmma_hold(o);
                issue_scores(s);
                wgmma_wait<0>();
                wgmma_hold(s);
                moved = softmax<false>(s, rows, scale, 0, window, alpha0, alpha1);
            } else {
                rows.l0 += l0;
                rows.l1 += l1;
            }
            release_k();
        }
        wgmma_wait<0>();
        wgmma_hold(o);
        release_v();
        pack(s, p);
        if (moved) rescale(o, alpha0, alpha1);
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1) attention_prefill_sm90(
    const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap kv_map, Element* __restrict__ out,
    const int* __restrict__ block_tables, int4* __restrict__ plan, const float* __restrict__ sinks, int max_blocks,
    int num_heads, int num_kv_heads, int num_layers, int layer, int window, float scale, float soft_cap) {
    extern __shared__ unsigned char raw[];
    __shared__ Barriers bars;
    const u32 base = (shared_address(raw) + 1023) & ~1023u;
    const u32 smem_q = base;
    const u32 smem_k = base + kStagesQ * kBytesQ;
    const u32 smem_v = smem_k + kStages * kBytesKV;
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
    const int group_heads = num_heads / PACK;

    if (threadIdx.x == 0) {
        for (int i = 0; i < kStagesQ; ++i) {
            barrier_init(shared_address(&bars.full_q[i]), 1);
            barrier_init(shared_address(&bars.empty_q[i]), kConsumers * 4);
        }
        for (int i = 0; i < kStages; ++i) {
            barrier_init(shared_address(&bars.full_k[i]), 1);
            barrier_init(shared_address(&bars.empty_k[i]), kConsumers * 4);
            barrier_init(shared_address(&bars.full_v[i]), 1);
            barrier_init(shared_address(&bars.empty_v[i]), kConsumers * 4);
        }
        for (int i = 0; i < 2; ++i) {
            barrier_init(shared_address(&bars.full_item[i]), 1);
            barrier_init(shared_address(&bars.empty_item[i]), kConsumers * 4);
        }
        barrier_init_fence();
    }
    __syncthreads();

    if (warpgroup == 0) {
        registers_release<kProducerRegisters>();
        if (threadIdx.x >= 32) return;
        const int lane = threadIdx.x;
        if (lane == 0) {
            tma_prefetch(&q_map);
            tma_prefetch(&kv_map);
        }
        const int box = lane % kBoxes;
        const int column = lane / kBoxes;
        const int num_items = plan[0].z * group_heads;
        const i64 block_rows = i64(num_layers) * 2 * num_kv_heads * BLOCK_SIZE;
        Ring<kStages> k_ring, v_ring;
        Ring<kStagesQ> q_ring;
        int item_slot = 0;
        u32 item_phase = 0;
        int index = blockIdx.x;
        while (true) {
            const bool live = index < num_items;
            const int4 item = live ? plan[1 + index / group_heads] : make_int4(-1, 0, 0, 0);
            const int group = live ? index % group_heads : 0;
            barrier_wait(shared_address(&bars.empty_item[item_slot]), item_phase ^ 1);
            if (lane == 0) {
                bars.item[item_slot] = item;
                bars.head[item_slot] = group * PACK;
                barrier_arrive(shared_address(&bars.full_item[item_slot]));
            }
            item_slot ^= 1;
            if (item_slot == 0) item_phase ^= 1;
            if (!live) break;
            if (lane == 0) index = (int)gridDim.x + atomicAdd(&plan[0].x, 1);

            const int kv_head = group * PACK / (num_heads / num_kv_heads);
            const int kv_end = item.z + (item.w & 0xffff);
            const int kv_begin = WINDOW ? max(0, item.z - window + 1) : 0;
            const int last = (kv_end + kKeys - 1) / kKeys;
            const int first = kv_begin / kKeys;
            const int* table = block_tables + i64(item.x) * max_blocks;
            const int head_row = (layer * 2 * num_kv_heads + kv_head) * BLOCK_SIZE;
            const int v_rows = num_kv_heads * BLOCK_SIZE;

            // Row of this lane's box in the pool; negative (which TMA fills with zeros) outside what the tile needs.
            auto box_row = [&](int n) {
                const int token = n * kKeys + box * kBoxRows;
                const int block = token / BLOCK_SIZE;
                int id = -1;
                if (column < kColumns && token < kv_end && (block + 1) * BLOCK_SIZE > kv_begin) id = table[block];
                return id < 0 ? -1024 : (int)(id * block_rows) + head_row + token % BLOCK_SIZE;
            };
            auto load = [&](u32 full, u32 empty, u32 dst, u32 phase, int row) {
                barrier_wait(empty, phase ^ 1);
                if (lane == 0) barrier_expect(full, kBytesKV);
                __syncwarp();
                if (column < kColumns)
                    tma_load_2d(dst + column * kColumnKV + box * kBoxRows * 128, &kv_map, full, column * 64, row);
                __syncwarp();
            };
            auto load_k = [&](int row) {
                load(shared_address(&bars.full_k[k_ring.stage]), shared_address(&bars.empty_k[k_ring.stage]),
                     smem_k + k_ring.stage * kBytesKV, k_ring.phase, row);
                k_ring.next();
            };
            auto load_v = [&](int row) {
                load(shared_address(&bars.full_v[v_ring.stage]), shared_address(&bars.empty_v[v_ring.stage]),
                     smem_v + v_ring.stage * kBytesKV, v_ring.phase, row < 0 ? row : row + v_rows);
                v_ring.next();
            };

            int row = box_row(last - 1);
            load_k(row);
            barrier_wait(shared_address(&bars.empty_q[q_ring.stage]), q_ring.phase ^ 1);
            if (lane == 0) {
                const u32 full = shared_address(&bars.full_q[q_ring.stage]);
                barrier_expect(full, kBytesQ);
#pragma unroll
                for (int c = 0; c < kColumns; ++c)
                    tma_load_3d(smem_q + q_ring.stage * kBytesQ + c * kColumnQ, &q_map, full, c * 64, group * PACK, item.y);
            }
            __syncwarp();
            q_ring.next();
            for (int n = last - 2; n >= first; --n) {
                const int row_n = box_row(n);
                load_k(row_n);
                load_v(row);
                row = row_n;
            }
            load_v(row);
            index = __shfl_sync(~0u, index, 0);
        }
        // The last block to finish leaves the counters at zero for the next launch.
        if (lane == 0) {
            __threadfence();
            if (atomicAdd(&plan[0].y, 1) == (int)gridDim.x - 1) {
                plan[0].x = 0;
                plan[0].y = 0;
            }
        }
    } else {
        registers_acquire<kConsumerRegisters>();
        const int wg = warpgroup - 1;
        const int thread = threadIdx.x % 128;
        const int lane = thread % 32;
        const int quad = lane % 4;
        const int row0 = wg * 64 + thread / 32 * 16 + lane / 4;  // and row0 + 8
        const Scale scales = new_scale(scale, soft_cap);
        const u64 q_descs = tile_descriptor(smem_q + wg * 64 * 128, 16), k_descs = tile_descriptor(smem_k, 16);
        const u64 v_descs = tile_descriptor(smem_v, kColumnKV);
        const int my_turn = kTurnBarrier + wg, next_turn = kTurnBarrier + (wg + 1) % kConsumers;
        Consumer consumer = {bars, smem_v, q_descs, k_descs, v_descs, lane, quad, my_turn, next_turn, kGroupBarrier + wg};
        if (wg == kConsumers - 1) named_arrive(kTurnBarrier, 256);

        int item_slot = 0;
        u32 item_phase = 0;
        while (true) {
            barrier_wait(shared_address(&bars.full_item[item_slot]), item_phase);
            const int4 item = bars.item[item_slot];
            const int head = bars.head[item_slot];
            __syncwarp();
            if (lane == 0) barrier_arrive(shared_address(&bars.empty_item[item_slot]));
            item_slot ^= 1;
            if (item_slot == 0) item_phase ^= 1;
            if (item.x < 0) break;

            const int valid = item.w & 0xffff;
            const int last = (item.z + valid + kKeys - 1) / kKeys;
            const int first = WINDOW ? max(0, item.z - window + 1) / kKeys : 0;
            // Tiles [seen_from, seen_until) are seen whole by all of this warpgroup's rows, and are not the first of any.
            const int past_window = max(0, item.z + (wg * 64 + 63) / PACK - window + 1);
            const int seen_from = WINDOW ? max(first, (past_window + kKeys - 1) / kKeys) : first;
            const int seen_until = (item.z + wg * 64 / PACK) / kKeys;

            float o[kOuts];
            float s[kScores];
            u32 p[kScores / 2];
            Rows rows = new_rows(item.z + row0 / PACK, item.z + (row0 + 8) / PACK);
#pragma unroll
            for (int i = 0; i < kOuts; ++i) o[i] = 0.0f;

            consumer.wait_q();
            int n = last - 1;
            consumer.begin(s, p, rows, scales, n, window);
            // What lies behind the context in its last block may be anything, and 0 * NaN is NaN: zero it in V.
            const int past = last * kKeys - (item.z + valid + (item.w >> 16));
            if (past > 0) {
                consumer.wait_v();
                const u32 end = smem_v + consumer.v_ring.stage * kBytesKV + kColumnKV;
                for (int i = thread; i < past * 8 * kColumns; i += 128) {
                    const u32 at = end + i / (past * 8) * kColumnKV - (i % (past * 8) + 1) * 16;
                    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
                }
                fence_async_shared();
                named_sync(consumer.my_group, 128);
            }
            for (--n; n >= max(first, seen_until); --n) consumer.step<true>(s, p, o, rows, scales, n, window);
            for (; n >= seen_from; --n) consumer.step<false>(s, p, o, rows, scales, n, window);
            if constexpr (WINDOW)
                for (; n >= first; --n) consumer.step<true>(s, p, o, rows, scales, n, window);
            consumer.release_q();
            consumer.wait_v();
            consumer.issue_values(o, p);
            const int h0 = head + row0 % PACK, h1 = head + (row0 + 8) % PACK;
            float scale0, scale1;
            finish(rows, sinks, h0, h1, scale0, scale1);
            wgmma_wait<0>();
            wgmma_hold(o);
            consumer.release_v();

            const int t0 = row0 / PACK, t1 = (row0 + 8) / PACK;
            store_rows(o, scale0, scale1, t0 < valid ? out + (i64(item.y + t0) * num_heads + h0) * kDim : nullptr,
                       t1 < valid ? out + (i64(item.y + t1) * num_heads + h1) * kDim : nullptr, quad);
        }
    }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL
