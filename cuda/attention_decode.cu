// attention_decode: attention of 1 to 8 new tokens a request over a paged KV pool.
//
// Computes  out[b,j,h] = softmax(cap(scale * q[b,j,h] . K[b,:,h/g])) V[b,:,h/g], where new
// token j of request b sits at position context_lens[b] - Q + j, sees itself and what is
// before it (at most `window` positions), and `sinks[h]` may add exp(sink) to the denominator.
//
// Layout   q, out  [B, Q, H, D]; pool [blocks, layers, 2, H_kv, block_size, D], of which `kv`
//          points at this layer in block 0; block_tables int32 [B, max_blocks]; g = H / H_kv.
// Rows     The Q*g query rows of one KV head fill a tensor-core tile; row = j*g + h%g.
//          -DROWS is Q*g rounded up to 4, 8, 16, 32, 64 or 128. Up to 8 rows the product is
//          keys x rows (K, V^T are the 16-high operand), so no half of a tile is wasted.
// Work     A request is cut at multiples of a split size that depends on its own length
//          alone. One (split, KV head) is a unit. attention_decode_plan, one block, once a
//          step, lists the splits and cuts the list of units into `gridDim.x` runs of equal
//          cost; every layer reuses that. A request's result is therefore the same bits
//          whatever else is in the batch.
// Block    Producer warps fill a ring of STAGES tiles of TILE keys (K and V) and run ahead
//          over unit borders; 4 (ROWS 128: 8) consumer warps: tile t of a unit goes to key
//          group t % kKeyGroups, each with its own online softmax. At a unit's end the groups
//          merge through shared memory in fixed order. A request of several splits leaves
//          float32 partials; the block that takes the last ticket merges them, in order.
// Fill     -DTMA=1: one box of the tensor copy engine per 64 columns of a block, swizzled;
//          else cp.async of 16 bytes with the same swizzle.
// SM       -DBLOCKS blocks share a multiprocessor; one loads while another ends a unit.
// Shared   ring STAGES * TILE * D' * 4 bytes (D' = D rounded up to 64) + merge buffer
//          kKeyGroups * ROWS * (D + 8) * 4, at least ROWS * 512 + barriers; with more
//          than 8 rows and D 256, or ROWS 128, also the queries, 32 * D bytes a consumer warp.
// Bound by device memory: each K and V byte is read once.
// Limits   D in {64, 96, 128, 256}; block_size a power of two >= 16; Q*g <= 128; 16-bit elements.
#include "barrier.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#ifndef ROWS
#define ROWS 8
#endif
#ifndef TILE
#define TILE 64
#endif
#ifndef STAGES
#define STAGES 6
#endif
#ifndef TMA
#define TMA 0
#endif
#ifndef BLOCKS
#define BLOCKS 1
#endif

constexpr int kMaxSplits = 128;
constexpr int kBaseSplit = HEAD_DIM <= 96 ? 1024 : 512;
constexpr int kUnitCost = 48;  // of a unit's own overhead, in tokens

// Up to 8 rows are the narrow side of the product (keys x rows); more are its tall side.
constexpr bool kNarrow = ROWS <= 8;
constexpr int kRowTiles = ROWS <= 16 ? 1 : ROWS / 16;
constexpr int kConsumers = kRowTiles == 8 ? 8 : 4;
constexpr int kKeyGroups = kConsumers / kRowTiles;
constexpr int kConsumerThreads = kConsumers * 32;
constexpr bool kTma = TMA != 0 && HAS_TMA != 0;
constexpr int kProducers = 2;
constexpr int kPanels = (HEAD_DIM + 63) / 64;  // of 64 columns, 128 bytes
constexpr int kPanelBytes = TILE * 128;
constexpr int kHalfStage = kPanels * kPanelBytes;  // K, or V
constexpr int kStageBytes = 2 * kHalfStage;
constexpr int kMergeStride = HEAD_DIM + 8;
constexpr int kMergeFloats =
    kKeyGroups > 1 ? kKeyGroups * ROWS * kMergeStride : ROWS * kMaxSplits;
constexpr int kKeySteps = TILE / 16;
constexpr int kDimSteps = HEAD_DIM / 16;
constexpr int kOutTiles = kNarrow ? HEAD_DIM / 16 : HEAD_DIM / 8;
// Query fragments live in registers, or where those run out, in a shared buffer per consumer warp.
constexpr bool kSharedQ = !kNarrow && (HEAD_DIM == 256 || ROWS == 128);
constexpr int kQueryBytes = kSharedQ ? kPanels * 16 * 128 : 0;

// A key group skips the others' tiles, so it may wait for a stage before the stage's last use has
// landed; parity cannot tell the two apart on one barrier, but does on alternate ones.
constexpr int kFullBarriers = 2 * STAGES;
constexpr int kSharedBytes = STAGES * kStageBytes + kConsumers * kQueryBytes + kMergeFloats * 4 +
                             kKeyGroups * ROWS * 8 + (kFullBarriers + STAGES) * 8 + 16;
#ifdef SHARED_BYTES  // what the launcher will ask for
static_assert(kSharedBytes == SHARED_BYTES, "the tile choice counts shared memory otherwise");
#endif
static_assert(kKeyGroups <= STAGES || kKeyGroups == 1, "see kFullBarriers");
static_assert(ROWS == 4 || ROWS == 8 || ROWS == 16 || ROWS == 32 || ROWS == 64 || ROWS == 128, "ROWS");
static_assert(HEAD_DIM % 32 == 0 && HEAD_DIM <= 256 && TILE % 16 == 0, "HEAD_DIM, TILE");
static_assert(kKeyGroups == 1 || kMergeFloats >= ROWS * kMaxSplits, "weights reuse the merge buffer");

// One split: request, first token (a multiple of TILE), end token, split | splits << 16.
struct alignas(16) Split {
  i32 request, first, end, split_of;
};
// Where the ring stands at a tile: its stage and the barriers' parities.
struct Place {
  u32 stage, full, full_parity, empty_parity;

  __device__ explicit Place(u32 position)
      : stage(position % STAGES),
        full(position % kFullBarriers * 8),
        full_parity(position / kFullBarriers & 1),
        empty_parity(position / STAGES & 1 ^ 1) {}
};
struct Partial {
  float max, sum;  // of the row's scaled scores, base 2; of exp2(score - max)
};

__device__ __forceinline__ int split_size(int length) {
  int size = kBaseSplit;
  while (length > size * kMaxSplits) size *= 2;
  return size;
}

// ---- the work map ---------------------------------------------------------

struct Plan {
  int start, length, size, first_split, count;

  __device__ Plan(int context, int queries, int window) {
    length = context;
    start = window > 0 ? max(0, context - queries - window + 1) / TILE * TILE : 0;
    size = split_size(context);
    first_split = start / size;
    count = max(1, (context + size - 1) / size - first_split);
  }
  __device__ int first(int k) const { return k == 0 ? start : (first_split + k) * size; }
  __device__ int end(int k) const { return min(length, (first_split + k + 1) * size); }
  __device__ i64 cost_before(int k) const { return i64(first(k) - start) + i64(k) * kUnitCost; }
  __device__ i64 cost() const { return i64(length - start) + i64(count) * kUnitCost; }
};

// Grid 1, block 1024. Writes splits[], run_start[runs + 1] (in units) and run_first[runs].
extern "C" __global__ void __launch_bounds__(1024)
    attention_decode_plan(const i32* __restrict__ context_lens, Split* splits, i32* run_start,
                          Split* run_first, i32 batch, i32 queries, i32 window, i32 kv_heads,
                          i32 runs) {
  __shared__ i32 warp_count[32];
  __shared__ i64 warp_cost[32];
  __shared__ i32 chunk_base[1024];
  __shared__ i64 chunk_cost[1024];
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;

  // Total cost first: the runs' borders depend on it.
  i64 total = 0;
  for (int b = tid; b < batch; b += 1024) total += Plan(context_lens[b], queries, window).cost();
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) total += __shfl_xor_sync(~0u, total, o);
  if (lane == 0) warp_cost[warp] = total;
  __syncthreads();
  total = warp_cost[lane];
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) total += __shfl_xor_sync(~0u, total, o);
  total *= kv_heads;

  int base = 0;
  i64 base_cost = 0;
  for (int chunk = 0; chunk < batch; chunk += 1024) {
    __syncthreads();
    const int b = chunk + tid;
    int count = 0;
    i64 cost = 0;
    if (b < batch) {
      const Plan plan(context_lens[b], queries, window);
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
      const Plan plan(context_lens[chunk + r], queries, window);
      for (int k = lane; k < plan.count; k += 32) {
        const int index = chunk_base[r] + k;
        splits[index] = Split{chunk + r, plan.first(k), plan.end(k), k | plan.count << 16};
        const i64 unit = i64(plan.end(k) - plan.first(k)) + kUnitCost;
        i64 low = (chunk_cost[r] + plan.cost_before(k)) * kv_heads;
        for (int h = 0; h < kv_heads; ++h, low += unit) {
          // Run i begins where the cost reaches total * i / runs, at the nearer unit border.
          i64 run = (low * runs + total - 1) / total;
          for (; run < runs && run * total < (low + unit) * runs; ++run) {
            const bool nearer_low = 2 * (run * total - low * runs) < unit * runs;
            run_start[run] = index * kv_heads + h + (nearer_low ? 0 : 1);
          }
        }
      }
    }
    base += all;
    base_cost += all_cost;
  }
  if (tid == 0) run_start[runs] = base * kv_heads;
  __syncthreads();
  for (int run = tid; run < runs; run += 1024) {
    const int unit = run_start[run];
    if (unit < base * kv_heads) run_first[run] = splits[unit / kv_heads];
  }
}

// ---- attention ------------------------------------------------------------

struct Params {
  const Element* q;
  const Element* kv;
  const i32* block_tables;
  const i32* context_lens;
  const Split* splits;
  const i32* run_start;
  const Split* run_first;
  const float* sinks;  // [H] or null
  Element* out;
  float* partial_out;      // [splits * H_kv, rows, D]
  Partial* partial_stats;  // [splits * H_kv, rows]
  i32* tickets;            // [B * H_kv], zero between launches
  i64 block_stride;        // elements from a block to the next
  i64 first_row;           // of this layer in the tensor map, whose rows are D elements
  i64 block_rows;          // rows of a block, all layers
  i32 max_blocks, block_shift, kv_heads, group, queries, window;
  float scale_log2, soft_cap;  // scale * log2(e); 0: no cap
};

// Walks the units of this block; the producer and consumers each hold one.
struct Walk {
  int unit, end, head, index;
  Split split;

  __device__ Walk(const Params& p) {
    unit = p.run_start[blockIdx.x];
    end = p.run_start[blockIdx.x + 1];
    split = p.run_first[blockIdx.x];
    index = unit / p.kv_heads;
    head = unit - index * p.kv_heads;
  }
  __device__ bool valid() const { return unit < end; }
  __device__ int tiles() const { return (split.end - split.first + TILE - 1) / TILE; }
  __device__ void next(const Params& p) {
    ++unit;
    if (++head == p.kv_heads) {
      head = 0;
      ++index;
      if (unit < end) split = p.splits[index];
    }
  }
};

__device__ __forceinline__ u32 swizzled(int row, int chunk) {
  return u32((chunk >> 3) * kPanelBytes + row * 128 + (((chunk & 7) ^ (row & 7)) << 4));
}

// Fills the ring. `warp` 0 brings K, 1 brings V (with TMA, 0 brings both).
__device__ __forceinline__ void produce(const Params& p, const TensorMap* map, u32 ring, u32 full,
                                        u32 empty, int warp, int lane) {
  const int block_size = 1 << p.block_shift;
  u32 position = 0;
  for (Walk walk(p); walk.valid(); walk.next(p)) {
    const Split split = walk.split;
    const i32* table = p.block_tables + i64(split.request) * p.max_blocks;
    const int first_block = split.first >> p.block_shift;
    const int last_block = (split.end - 1) >> p.block_shift;
    const int tiles = walk.tiles();
    int held_from = first_block;  // this lane holds the id of block held_from + lane
    i32 held = first_block + lane <= last_block ? table[first_block + lane] : 0;
    for (int t = 0; t < tiles; ++t, ++position) {
      const Place place(position);
      const int token = split.first + t * TILE;
      const int tile_blocks_end = (min(token + TILE, split.end) - 1) >> p.block_shift;
      if (tile_blocks_end >= held_from + 32) {
        held_from = token >> p.block_shift;
        held = held_from + lane <= last_block ? table[held_from + lane] : 0;
      }
      barrier_wait(empty + place.stage * 8, place.empty_parity);
      const u32 destination = ring + place.stage * kStageBytes, landed = full + place.full;
#if HAS_TMA
      if constexpr (kTma) {
        const int box_rows = min(block_size, TILE);
        const int boxes = (min(TILE, split.end - token) + box_rows - 1) / box_rows;
        if (lane == 0) barrier_expect(landed, boxes * box_rows * kPanels * 256);
        __syncwarp();
        // One lane per box: `boxes` slots in the tile x K, V x panels.
        const int slot = lane / (2 * kPanels), which = lane % (2 * kPanels);
        for (int box = 0; box < boxes; box += 16 / kPanels) {
          const int at = token + (box + slot) * box_rows;
          const i32 block = __shfl_sync(~0u, held, ((at >> p.block_shift) - held_from) & 31);
          if (box + slot < boxes) {
            const int is_v = which / kPanels, panel = which % kPanels;
            const i64 row = i64(block) * p.block_rows + p.first_row +
                            i64(is_v * p.kv_heads + walk.head) * block_size + (at & (block_size - 1));
            tma_load_2d(destination + is_v * kHalfStage + panel * kPanelBytes + (box + slot) * box_rows * 128,
                        map, panel * 64, int(row), landed);
          }
        }
        continue;
      }
#endif
      constexpr int kChunks = HEAD_DIM / 8;  // of 16 bytes, in a row
      const u32 half = destination + warp * kHalfStage;
      const i64 head_offset = i64(warp * p.kv_heads + walk.head) * block_size;
#pragma unroll 4
      for (int i = lane; i < TILE * kChunks; i += 32) {
        const int row = i / kChunks, chunk = i % kChunks;
        const int at = token + row;
        const bool inside = at < split.end;
        const i32 block = __shfl_sync(~0u, held, ((at >> p.block_shift) - held_from) & 31);
        const Element* source = p.kv + (inside ? block * p.block_stride +
                                                     (head_offset + (at & (block_size - 1))) * HEAD_DIM + chunk * 8
                                               : 0);
        cp_async16(half + swizzled(row, chunk), source, inside);
      }
      barrier_arrive_cp_async(landed);
    }
  }
}

// One warp's query rows as tensor-core fragments.
struct Queries {
  static constexpr int kWords = kNarrow ? 2 : 4;
  u32 held[kSharedQ ? 1 : kDimSteps][kWords];
  u32 shared;  // this lane's ldmatrix address

  // Reads the rows of a unit whose row 0 is at `out_row`; rows past `rows` are zero.
  __device__ __forceinline__ void load(const Params& p, u32 buffer, i64 out_row, int first, int rows, int lane) {
    if constexpr (kSharedQ) {
      constexpr int kChunks = HEAD_DIM / 8;
      __syncwarp();  // every lane is done with the last unit's rows
      for (int i = lane; i < 16 * kChunks; i += 32) {
        const int local = i / kChunks, chunk = i % kChunks, row = first + local;
        Vec16 value = {0, 0, 0, 0};
        if (row < rows) value = load16(p.q + element(p, out_row, row) + chunk * 8);
        const u32 at = buffer + (chunk >> 3) * 2048 + local * 128 + (((chunk & 7) ^ (local & 7)) << 4);
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(value.word[0]), "r"(value.word[1]),
                     "r"(value.word[2]), "r"(value.word[3])
                     : "memory");
      }
      __syncwarp();
      const int id = lane / 8, within = lane % 8;
      shared = buffer + (within + 8 * (id & 1)) * 128 + (((id / 2) ^ within) << 4);
    } else {
      // Narrow: word r is column 8r of the B fragment; else r & 1 is its row half, r / 2 its column half.
#pragma unroll
      for (int half = 0; half < (kNarrow ? 1 : 2); ++half) {
        const int row = first + lane / 4 + 8 * half;
        const Element* source = p.q + element(p, out_row, row) + (lane % 4) * 2;
#pragma unroll
        for (int k = 0; k < kDimSteps; ++k) {
#pragma unroll
          for (int c = 0; c < 2; ++c)
            held[k][kNarrow ? c : 2 * c + half] =
                row < rows ? *reinterpret_cast<const u32*>(source + k * 16 + c * 8) : 0;
        }
      }
    }
  }
  __device__ __forceinline__ void fragment(int k, u32 (&a)[4]) const {
    if constexpr (kSharedQ) {
      ldmatrix4(a, (shared ^ ((2 * k & 7) << 4)) + 2 * k / 8 * 2048);
    } else {
#pragma unroll
      for (int r = 0; r < kWords; ++r) a[r] = held[k][r];
    }
  }
  // Element offset of query row `row`: token row / group of the request, head row % group.
  static __device__ __forceinline__ i64 element(const Params& p, i64 out_row, int row) {
    return (out_row + i64(row / p.group) * p.kv_heads * p.group + row % p.group) * HEAD_DIM;
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

// out += weights . values; `weight` holds probabilities where multiply_keys left scores.
__device__ __forceinline__ void multiply_values(State& state, const float (&weight)[kScoreTiles][4], u32 values,
                                                int lane) {
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
      if constexpr (kNarrow) {
        mma16816<Element>(state.out[n], x, w[0], w[1]);
      } else {
        mma16816<Element>(state.out[2 * n], w, x[0], x[1]);
        mma16816<Element>(state.out[2 * n + 1], w, x[2], x[3]);
      }
    }
  }
}

// Adds one tile of keys in shared memory at `keys` (K, then V) to the state.
// `least[i]`, `limit[i]`: tokens of the tile that the lane's row i may see, [least, limit).
__device__ __forceinline__ void add_tile(const Params& p, State& state, const Queries& queries, u32 keys, int lane,
                                         bool masked, const int (&least)[2], const int (&limit)[2]) {
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
  multiply_values(state, score, keys + kHalfStage, lane);
}

// Final value of a row: its sum with the sink's share, inverted.
__device__ __forceinline__ float inverse_sum(const Params& p, float max, float sum, int head) {
  if (p.sinks != nullptr) {
    // The row's own maximum is the reference; a sink far above it drives the row to zero.
    sum += exp2_fast(p.sinks[head] * kLog2e - (max == kNegInf ? 0.f : max));
  }
  return sum > 0.f ? 1.f / sum : 0.f;
}

// Folds a request's partials for one KV head, in order of splits. All consumer threads call.
__device__ __forceinline__ void merge_splits(const Params& p, const Walk& walk, float* weights, int thread, int rows,
                                             i64 out_row) {
  const int splits = walk.split.split_of >> 16, split = walk.split.split_of & 0xffff;
  const int lane = thread % 32, warp = thread / 32;
  const i64 stride = i64(p.kv_heads) * rows;  // partial rows from a split to the next
  const i64 first = (i64(walk.index - split) * p.kv_heads + walk.head) * rows;
  for (int row = warp; row < rows; row += kConsumers) {
    Partial mine[kMaxSplits / 32];
    float max = kNegInf, sum = 0.f;
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) {
      const int s = i * 32 + lane;
      mine[i] = Partial{kNegInf, 0.f};
      if (s < splits) mine[i] = p.partial_stats[first + s * stride + row];
      max = fmaxf(max, mine[i].max);
    }
    max = warp_max(max);
    const float base = max == kNegInf ? 0.f : max;
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) {
      mine[i].max = exp2_fast(mine[i].max - base);
      sum += mine[i].sum * mine[i].max;
    }
    sum = warp_sum(sum);
    const float scale = inverse_sum(p, max, sum, walk.head * p.group + row % p.group);
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) weights[row * kMaxSplits + i * 32 + lane] = mine[i].max * scale;
  }
  named_sync<kConsumerThreads>(1);
  constexpr int kQuads = HEAD_DIM / 4, kBatch = 16;  // loads in flight
#pragma unroll 1
  for (int i = thread; i < rows * kQuads; i += kConsumerThreads) {
    const int row = i / kQuads, column = i % kQuads * 4;
    const float* source = p.partial_out + (first + row) * HEAD_DIM + column;
    const float* weight = weights + row * kMaxSplits;
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    const i64 step = stride * HEAD_DIM;
#pragma unroll 1
    for (int s0 = 0; s0 < splits; s0 += kBatch) {
      Vec16 part[kBatch];
#pragma unroll
      for (int s = 0; s < kBatch; ++s) part[s] = load16(source + min(s0 + s, splits - 1) * step);
#pragma unroll
      for (int s = 0; s < kBatch; ++s) {  // past the last split the weight is 0
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += weight[s0 + s] * __uint_as_float(part[s].word[c]);
      }
    }
    const i64 at = Queries::element(p, out_row, row) + column;
    u32* target = reinterpret_cast<u32*>(p.out + at);
    target[0] = pack2<Element>(sum[0], sum[1]);
    target[1] = pack2<Element>(sum[2], sum[3]);
  }
}

__device__ __forceinline__ void consume(const Params& p, u32 ring, u32 query_buffers, u32 full, u32 empty, float* merge,
                                        Partial* merge_stats, i32* flag, int thread) {
  const int lane = thread % 32, warp = thread / 32;
  const int key_group = warp / kRowTiles, row_tile = warp % kRowTiles;
  const int rows = p.group * p.queries;
  const int my_row[2] = {kNarrow ? lane % 4 * 2 : row_tile * 16 + lane / 4,
                         kNarrow ? lane % 4 * 2 + 1 : row_tile * 16 + lane / 4 + 8};
  State state;
  Queries queries;
  const u32 query_buffer = query_buffers + warp * kQueryBytes;
  u32 base = 0;  // ring position of the unit's first tile
  for (Walk walk(p); walk.valid(); walk.next(p)) {
    const Split split = walk.split;
    const int tiles = walk.tiles();
    const i64 out_row = (i64(split.request) * p.queries * p.kv_heads + walk.head) * p.group;
    queries.load(p, query_buffer, out_row, row_tile * 16, rows, lane);
    // The last token each row sees, plus one, and the first.
    const int context = p.context_lens[split.request];
    int row_end[2], row_first[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int end = context - p.queries + my_row[half] / p.group + 1;
      row_first[half] = p.window > 0 ? max(0, end - p.window) : 0;
      row_end[half] = min(end, split.end);
    }
    const int safe_end = min(split.end, context - p.queries + 1);  // all rows see keys before it
    const int safe_first = p.window > 0 ? max(0, context - p.window) : 0;
    state.reset();
    for (int t = key_group; t < tiles; t += kKeyGroups) {
      const Place place(base + t);
      const int token = split.first + t * TILE;
      const u32 keys = ring + place.stage * kStageBytes;
      barrier_wait(full + place.full, place.full_parity);
#if HAS_TMA
      if (kTma && token + TILE > split.end) {
        // Rows past the end were copied with their block or not at all: zero V, so that 0 * NaN stays out.
        for (int i = lane + (split.end - token) * kPanels * 8; i < TILE * kPanels * 8; i += 32) {
          const u32 at = keys + kHalfStage + swizzled(i / (kPanels * 8), i % (kPanels * 8));
          asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
        }
        fence_async_shared();
        if (kRowTiles > 1) named_sync<kRowTiles * 32>(2 + key_group);
        __syncwarp();
      }
#endif
      const bool masked = token + TILE > safe_end || token < safe_first;
      const int limit[2] = {row_end[0] - token, row_end[1] - token};
      const int least[2] = {row_first[0] - token, row_first[1] - token};
      add_tile(p, state, queries, keys, lane, masked, least, limit);
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + place.stage * 8);
    }
    base += tiles;

#pragma unroll
    for (int i = 0; i < 2; ++i)
      state.sum[i] = across_lanes(state.sum[i], [](float a, float b) { return a + b; });
    const bool whole = split.split_of >> 16 == 1;
    const i64 partial_row = (i64(walk.index) * p.kv_heads + walk.head) * rows;
    if constexpr (kKeyGroups > 1) {
      named_sync<kConsumerThreads>(1);  // the buffer's last readers are done
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = my_row[i];
        if (row < rows) {
          float* target = merge + (key_group * ROWS + row) * kMergeStride;
#pragma unroll
          for (int n = 0; n < kOutTiles; ++n) {
            if constexpr (kNarrow) {
              target[n * 16 + lane / 4] = state.out[n][i];
              target[n * 16 + lane / 4 + 8] = state.out[n][i + 2];
            } else {
              *reinterpret_cast<float2*>(target + n * 8 + (lane % 4) * 2) =
                  make_float2(state.out[n][2 * i], state.out[n][2 * i + 1]);
            }
          }
          if (kNarrow ? lane / 4 == 0 : lane % 4 == 0)
            merge_stats[key_group * ROWS + row] = Partial{state.max[i], state.sum[i]};
        }
      }
      named_sync<kConsumerThreads>(1);
      constexpr int kQuads = HEAD_DIM / 4;
      for (int i = thread; i < rows * kQuads; i += kConsumerThreads) {
        const int row = i / kQuads, column = i % kQuads * 4;
        float max = kNegInf, sum = 0.f, out[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
        for (int g = 0; g < kKeyGroups; ++g) max = fmaxf(max, merge_stats[g * ROWS + row].max);
#pragma unroll
        for (int g = 0; g < kKeyGroups; ++g) {
          const float weight = exp2_fast(merge_stats[g * ROWS + row].max - (max == kNegInf ? 0.f : max));
          const float4 part = *reinterpret_cast<const float4*>(merge + (g * ROWS + row) * kMergeStride + column);
          sum += merge_stats[g * ROWS + row].sum * weight;
          out[0] += part.x * weight, out[1] += part.y * weight;
          out[2] += part.z * weight, out[3] += part.w * weight;
        }
        if (whole) {
          const float scale = inverse_sum(p, max, sum, walk.head * p.group + row % p.group);
          const i64 at = Queries::element(p, out_row, row) + column;
          u32* target = reinterpret_cast<u32*>(p.out + at);
          target[0] = pack2<Element>(out[0] * scale, out[1] * scale);
          target[1] = pack2<Element>(out[2] * scale, out[3] * scale);
        } else {
          *reinterpret_cast<float4*>(p.partial_out + (partial_row + row) * HEAD_DIM + column) =
              make_float4(out[0], out[1], out[2], out[3]);
          if (column == 0) p.partial_stats[partial_row + row] = Partial{max, sum};
        }
      }
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = my_row[half];
        if (row >= rows) continue;
        const int column = (lane % 4) * 2;
        if (whole) {
          const float scale = inverse_sum(p, state.max[half], state.sum[half], walk.head * p.group + row % p.group);
          const i64 at = Queries::element(p, out_row, row) + column;
#pragma unroll
          for (int n = 0; n < kOutTiles; ++n)
            *reinterpret_cast<u32*>(p.out + at + n * 8) =
                pack2<Element>(state.out[n][2 * half] * scale, state.out[n][2 * half + 1] * scale);
        } else {
          float* target = p.partial_out + (partial_row + row) * HEAD_DIM + column;
#pragma unroll
          for (int n = 0; n < kOutTiles; ++n)
            *reinterpret_cast<float2*>(target + n * 8) =
                make_float2(state.out[n][2 * half], state.out[n][2 * half + 1]);
          if (lane % 4 == 0) p.partial_stats[partial_row + row] = Partial{state.max[half], state.sum[half]};
        }
      }
    }
    if (!whole) {
      __threadfence();  // partials before the ticket
      named_sync<kConsumerThreads>(1);
      if (thread == 0) {
        i32* ticket = p.tickets + i64(split.request) * p.kv_heads + walk.head;
        const int splits = split.split_of >> 16;
        const bool last = atomicAdd(ticket, 1) == splits - 1;
        if (last) *ticket = 0;  // ready for the next launch
        __threadfence();
        *flag = last;
      }
      named_sync<kConsumerThreads>(1);
      if (*flag) merge_splits(p, walk, merge, thread, rows, out_row);
    }
  }
}

// Grid: as many blocks as the plan has runs. Block: kConsumers + kProducers warps.
extern "C" __global__ void __launch_bounds__((kConsumers + kProducers) * 32, BLOCKS)
    attention_decode(const __grid_constant__ Params p, const __grid_constant__ TensorMap map) {
  extern __shared__ __align__(1024) u8 shared[];
  u8* query_buffers = shared + STAGES * kStageBytes;
  float* merge = reinterpret_cast<float*>(query_buffers + kConsumers * kQueryBytes);
  Partial* merge_stats = reinterpret_cast<Partial*>(merge + kMergeFloats);
  u64* barriers = reinterpret_cast<u64*>(merge_stats + kKeyGroups * ROWS);
  i32* flag = reinterpret_cast<i32*>(barriers + kFullBarriers + STAGES);
  const u32 full = shared_address(barriers), empty = full + kFullBarriers * 8;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kFullBarriers; ++s) barrier_init(full + s * 8, kTma ? 1 : kProducers * 32);
    for (int s = 0; s < STAGES; ++s) barrier_init(empty + s * 8, kRowTiles);
    barrier_init_fence();
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  if (warp >= kConsumers) {
    const int producer = warp - kConsumers;
    if (!kTma || producer == 0)
      produce(p, &map, shared_address(shared), full, empty, producer, threadIdx.x % 32);
  } else {
    consume(p, shared_address(shared), shared_address(query_buffers), full, empty, merge, merge_stats, flag, threadIdx.x);
  }
}
