// attention_prefill: causal attention of a chunk of query tokens over a paged KV cache; the portable kernel (sm_80 up).
//
// Computes  what attention_prefill_sm90.cu computes, in the same layout, from the same plan (made with this kernel's tile
//           sizes), with the same options; see there. Blackwell takes this kernel too.
// Grid      one or two blocks a multiprocessor, persistent; work items (query tile, group of PACK heads) from a counter.
// Block     four warps of 16 * kRowBlocks rows each: 128 query rows a tile, or 64 for D = 256; KV tiles of 64 keys.
// Shared    Q [M, D], K [64, D], V [64, D], in 16-byte pieces permuted by row so that ldmatrix meets no bank conflict.
// Flow      cp.async brings V of a tile under its Q K product, and K of the next under its softmax and P V product.
// Bound     by mma.sync and the shared-memory reads that feed it: about a third of what wgmma reaches on Hopper.
// Order     as in the other kernel: absolute KV tiles, last to first, so the same bits whatever surrounds a request.
// Limits    as there. Keys past the context are never read: their places in shared memory are zeroed.
// Source    Dao 2023, "FlashAttention-2".

#include "attention_prefill.cuh"

namespace {

constexpr int kDim = HEAD_DIM;
constexpr int kPieces = (kDim + 63) / 64 * 8;  // of 16 bytes in a row of shared memory
constexpr int kRowBlocks = kDim == 256 ? 1 : 2;
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kRowBlocks * kWarps;
constexpr int kKeys = 64;
constexpr int kScores = kKeys / 2;  // accumulators a thread, for each row block
constexpr int kOuts = kDim / 2;
// More would hoist loads into registers that are not there.
constexpr int kUnroll = kDim == 128 && SINKS ? 1 : 2;
static_assert(kRows % PACK == 0, "a tile holds whole tokens");

__device__ __forceinline__ u32 piece_address(u32 base, int row, int piece) {
    return base + (row * kPieces + (piece ^ (row & 7))) * 16;
}

// The KV rows of one layer and head, found through a block table.
struct Cache {
    const Element* base;  // of the layer's keys of the head, in block 0
    i64 block_stride;     // elements
    i64 to_values;        // from a key to its value
    const int* table;
    int end;  // keys past it are not read

    __device__ __forceinline__ void fetch(u32 shared, int n, bool values) const {
        constexpr int kRowPieces = kDim / 8;
#pragma unroll 2
        for (int i = threadIdx.x; i < kKeys * kRowPieces; i += kThreads) {
            const int row = i / kRowPieces, piece = i % kRowPieces;
            const int key = n * kKeys + row;
            const int block = key < end ? table[key / BLOCK_SIZE] : -1;
            const Element* from = base;
            if (block >= 0) from += block * block_stride + (key % BLOCK_SIZE) * kDim + piece * 8 + (values ? to_values : 0);
            cp_async16(piece_address(shared, row, piece), from, block >= 0);
        }
        cp_async_commit();
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 2 - (HEAD_DIM == 256)) attention_prefill(
    const Element* __restrict__ q, const Element* __restrict__ pool, i64 q_stride, Element* __restrict__ out,
    const int* __restrict__ block_tables, int4* __restrict__ plan, const float* __restrict__ sinks, int max_blocks,
    int num_heads, int num_kv_heads, int num_layers, int layer, int window, float scale, float soft_cap) {
    extern __shared__ __align__(128) unsigned char raw[];
    __shared__ int next_index;
    const u32 smem_q = shared_address(raw);
    const u32 smem_k = smem_q + kRows * kPieces * 16;
    const u32 smem_v = smem_k + kKeys * kPieces * 16;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane % 4;
    const int group_heads = num_heads / PACK;
    const int num_items = plan[0].z * group_heads;
    const int warp_row = warp * 16 * kRowBlocks;
    const Scale scales = new_scale(scale, soft_cap);

    int index = blockIdx.x;
    while (index < num_items) {
        const int4 item = plan[1 + index / group_heads];
        const int head = index % group_heads * PACK;
        const int kv_head = head / (num_heads / num_kv_heads);
        const int valid = item.w & 0xffff;
        const int last = (item.z + valid + kKeys - 1) / kKeys;
        const int first = WINDOW ? max(0, item.z - window + 1) / kKeys : 0;
        const i64 head_stride = i64(BLOCK_SIZE) * kDim;
        const Cache cache = {pool + (i64(layer) * 2 * num_kv_heads + kv_head) * head_stride,
                             i64(num_layers) * 2 * num_kv_heads * head_stride, num_kv_heads * head_stride,
                             block_tables + i64(item.x) * max_blocks, item.z + valid};

#pragma unroll 2
        for (int i = threadIdx.x; i < kRows * (kDim / 8); i += kThreads) {
            const int row = i / (kDim / 8), piece = i % (kDim / 8);
            const bool live = row / PACK < valid;
            const i64 from = (item.y + (live ? row / PACK : 0)) * q_stride + (head + row % PACK) * kDim + piece * 8;
            cp_async16(piece_address(smem_q, row, piece), q + from, live);
        }
        cache.fetch(smem_k, last - 1, false);

        float o[kRowBlocks][kOuts];
        Rows rows[kRowBlocks];
#pragma unroll
        for (int r = 0; r < kRowBlocks; ++r) {
            const int row = warp_row + r * 16 + lane / 4;
            rows[r] = new_rows(item.z + row / PACK, item.z + (row + 8) / PACK);
#pragma unroll
            for (int i = 0; i < kOuts; ++i) o[r][i] = 0.0f;
        }
        const int low = item.z + warp_row / PACK;                              // positions of this warp's rows
        const int high = item.z + (warp_row + 16 * kRowBlocks - 1) / PACK;

        for (int n = last - 1; n >= first; --n) {
            cp_async_wait<0>();
            __syncthreads();
            cache.fetch(smem_v, n, true);

            float s[kRowBlocks][kScores];
#pragma unroll
            for (int r = 0; r < kRowBlocks; ++r)
#pragma unroll
                for (int i = 0; i < kScores; ++i) s[r][i] = 0.0f;
#pragma unroll kUnroll
            for (int k = 0; k < kDim / 16; ++k) {
                u32 a[kRowBlocks][4];
#pragma unroll
                for (int r = 0; r < kRowBlocks; ++r)
                    ldmatrix4(a[r], piece_address(smem_q, warp_row + r * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
                for (int j = 0; j < kKeys / 16; ++j) {
                    u32 b[4];
                    ldmatrix4(b, piece_address(smem_k, j * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
#pragma unroll
                    for (int r = 0; r < kRowBlocks; ++r) {
                        mma16816<Element>(*(float(*)[4])&s[r][j * 8], a[r], b[0], b[1]);
                        mma16816<Element>(*(float(*)[4])&s[r][j * 8 + 4], a[r], b[2], b[3]);
                    }
                }
            }
            cp_async_wait<0>();
            __syncthreads();
            if (n > first) cache.fetch(smem_k, n - 1, false);

            u32 p[kRowBlocks][kScores / 2];
            const bool masked = n * kKeys + kKeys - 1 > low || (WINDOW && n * kKeys <= high - window);
#pragma unroll
            for (int r = 0; r < kRowBlocks; ++r) {
                float alpha0, alpha1;
                const int column = n * kKeys + quad * 2;
                const bool moved = masked ? softmax<true>(s[r], rows[r], scales, column, window, alpha0, alpha1)
                                          : softmax<false>(s[r], rows[r], scales, column, window, alpha0, alpha1);
                pack(s[r], p[r]);
                if (moved) rescale(o[r], alpha0, alpha1);
            }
#pragma unroll
            for (int k = 0; k < kKeys / 16; ++k)
#pragma unroll
                for (int j = 0; j < kDim / 16; ++j) {
                    u32 b[4];
                    ldmatrix4_trans(b, piece_address(smem_v, k * 16 + lane % 16, j * 2 + lane / 16));
#pragma unroll
                    for (int r = 0; r < kRowBlocks; ++r) {
                        const u32(&a)[4] = *(const u32(*)[4])&p[r][k * 4];
                        mma16816<Element>(*(float(*)[4])&o[r][j * 8], a, b[0], b[1]);
                        mma16816<Element>(*(float(*)[4])&o[r][j * 8 + 4], a, b[2], b[3]);
                    }
                }
        }

#pragma unroll
        for (int r = 0; r < kRowBlocks; ++r) {
            const int row0 = warp_row + r * 16 + lane / 4, row1 = row0 + 8;
            const int t0 = row0 / PACK, t1 = row1 / PACK, h0 = head + row0 % PACK, h1 = head + row1 % PACK;
            float scale0, scale1;
            finish(rows[r], sinks, h0, h1, scale0, scale1);
            store_rows(o[r], scale0, scale1, t0 < valid ? out + (i64(item.y + t0) * num_heads + h0) * kDim : nullptr,
                       t1 < valid ? out + (i64(item.y + t1) * num_heads + h1) * kDim : nullptr, quad);
        }

        __syncthreads();  // all warps are done with this item's tiles and with next_index
        if (threadIdx.x == 0) next_index = (int)gridDim.x + atomicAdd(&plan[0].x, 1);
        __syncthreads();
        index = next_index;
    }
    // The last block to finish leaves the counters at zero for the next launch.
    if (threadIdx.x == 0) {
        __threadfence();
        if (atomicAdd(&plan[0].y, 1) == (int)gridDim.x - 1) {
            plan[0].x = 0;
            plan[0].y = 0;
        }
    }
}
