// attention_decode: sizes, and what the plan, the launcher and the kernel agree on.
#pragma once
#include "async.cuh"

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
#ifndef CONSUMERS  // warps
#define CONSUMERS (ROWS == 128 ? 8 : 4)
#endif

constexpr int kMaxSplits = 64;
constexpr int kBaseSplit = HEAD_DIM <= 96 ? 1024 : 512;
constexpr int kUnitCost = 48;  // of a unit's own overhead, in tokens
// Tiles that a block fetches before the kernel ahead has ended: a whole ring of each would be in that one's way.
constexpr int kEarlyTiles = STAGES < 3 ? STAGES : 3;

// Up to 8 rows are the narrow side of the product (keys x rows); more are its tall side.
constexpr bool kNarrow = ROWS <= 8;
constexpr int kRowTiles = ROWS <= 16 ? 1 : ROWS / 16;
constexpr int kConsumers = CONSUMERS;
constexpr int kKeyGroups = kConsumers / kRowTiles;
constexpr int kConsumerThreads = kConsumers * 32;
constexpr int kConsumerBarrier = 1;  // a named barrier
constexpr bool kTma = TMA != 0 && HAS_TMA != 0;
constexpr int kThreads = kConsumerThreads + 32;  // and a producer warp
constexpr int kPanels = (HEAD_DIM + 63) / 64;  // of 64 columns, 128 bytes
constexpr int kPanelBytes = TILE * 128;
constexpr int kHalfStage = kPanels * kPanelBytes;  // K, or V
constexpr int kStageBytes = 2 * kHalfStage;
constexpr int kMergeStride = HEAD_DIM + 8;
constexpr int kMergeFloats = kKeyGroups > 1 ? kKeyGroups * ROWS * kMergeStride : 0;
constexpr int kKeySteps = TILE / 16;
constexpr int kDimSteps = HEAD_DIM / 16;
constexpr int kOutTiles = kNarrow ? HEAD_DIM / 16 : HEAD_DIM / 8;
// Query fragments live in registers, or where those run out, stay in shared memory.
constexpr bool kSharedQ = !kNarrow && (HEAD_DIM == 256 || ROWS == 128);
constexpr int kQueryRows = kNarrow ? 8 : kRowTiles * 16;
constexpr int kQueryPanelBytes = kQueryRows * 128;
constexpr int kQueryBytes = kPanels * kQueryPanelBytes;
constexpr int kUnitSlots = kNarrow ? 4 : ROWS <= 64 ? 2 : 1;  // units whose queries are at hand
// A request's sum over the splits of one block: in shared memory, or where that runs out, in its partial.
constexpr bool kSharedSum = ROWS * HEAD_DIM <= 2048;
constexpr int kSumFloats = kSharedSum ? ROWS * HEAD_DIM : 0;
// A key group skips the others' tiles, so it may wait for a stage before the stage's last use has
// landed; parity cannot tell the two apart on one barrier, but does on alternate ones.
constexpr int kFullBarriers = 2 * STAGES;
constexpr int kBarriers = kFullBarriers + STAGES + 2 * kUnitSlots;
constexpr int kSharedBytes = STAGES * kStageBytes + kUnitSlots * (kQueryBytes + 32) + (kMergeFloats + kSumFloats) * 4 +
                             (kKeyGroups + 2) * ROWS * 8 + kBarriers * 8;
#ifdef SHARED_BYTES  // what the launcher will ask for
static_assert(kSharedBytes == SHARED_BYTES, "the tile choice counts shared memory otherwise");
#endif
static_assert(kKeyGroups <= STAGES || kKeyGroups == 1, "see kFullBarriers");
static_assert(kConsumers % kRowTiles == 0, "key groups of a warp for each row tile");
static_assert(ROWS == 4 || ROWS == 8 || ROWS == 16 || ROWS == 32 || ROWS == 64 || ROWS == 128, "ROWS");
static_assert(HEAD_DIM % 32 == 0 && HEAD_DIM <= 256 && TILE % 16 == 0, "HEAD_DIM, TILE");

// One split of one request. `first` is a multiple of TILE, `end` the token after its last;
// `context` counts the request's tokens, the new ones included.
struct alignas(16) Split {
  i32 request, first, end, split, count, context, unused[2];
};
// A split for one KV head; `index` is the split's place in the plan.
struct alignas(16) Unit {
  i32 request, first, end, split, count, context, index, head;
};
// Where a block's run of units begins: the unit's number, its split's place in the plan, its head. `origin` is
// the run in which that request and head began: this run itself, unless it begins inside of them.
struct alignas(16) RunStart {
  i32 unit, index, head, origin;
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
struct alignas(8) Partial {
  float max, sum;  // of the row's scaled scores, base 2; of exp2(score - max)
};

__device__ __forceinline__ int split_size(int length) {
  int size = kBaseSplit;
  while (length > size * kMaxSplits) size *= 2;
  return size;
}

struct Params {
  const Element* q;
  const Element* kv;
  const i32* block_tables;
  const Split* splits;
  const RunStart* run_start;
  const Split* run_first;
  const float* sinks;  // [H] or null
  Element* out;
  float* partial_out;      // [splits * H_kv, rows, D]
  Partial* partial_stats;  // [splits * H_kv, rows]
  i32* handed_over;        // [runs], zero between launches: 1 once a run has left its partials
  i64 block_stride;        // elements from a block to the next
  i64 first_row;           // of this layer in the tensor map, whose rows are D elements
  i64 block_rows;          // rows of a block, all layers
  i32 max_blocks, block_shift, kv_heads, group, queries, window;
  float scale_log2, soft_cap;  // scale * log2(e); 0: no cap
};

// Where the parts of a block's shared memory lie.
struct Shared {
  u8* base;  // the ring, as memory
  u32 ring, queries, full, empty, unit_full, unit_empty;
  float* merge;
  Partial* merge_stats;
  float* sum;          // [ROWS, D], of a request's splits so far
  Partial* sum_stats;  // [2, ROWS], by turns: a split reads the one before
  Unit* units;

  __device__ explicit Shared(u8* memory) : base(memory) {
    u8* at = base;
    ring = shared_address(at), at += STAGES * kStageBytes;
    queries = shared_address(at), at += kUnitSlots * kQueryBytes;
    merge = reinterpret_cast<float*>(at), at += kMergeFloats * 4;
    merge_stats = reinterpret_cast<Partial*>(at), at += kKeyGroups * ROWS * 8;
    sum = reinterpret_cast<float*>(at), at += kSumFloats * 4;
    sum_stats = reinterpret_cast<Partial*>(at), at += 2 * ROWS * 8;
    units = reinterpret_cast<Unit*>(at), at += kUnitSlots * 32;
    full = shared_address(at);
    empty = full + kFullBarriers * 8;
    unit_full = empty + STAGES * 8;
    unit_empty = unit_full + kUnitSlots * 8;
  }
  __device__ void init() const {
    for (int i = 0; i < kFullBarriers; ++i) barrier_init(full + i * 8, kTma ? 1 : 32);
    for (int i = 0; i < STAGES; ++i) barrier_init(empty + i * 8, kRowTiles);
    for (int i = 0; i < kUnitSlots; ++i) {
      barrier_init(unit_full + i * 8, 33);
      barrier_init(unit_empty + i * 8, kConsumerThreads);
    }
    barrier_init_fence();
  }
};

// Element offset of a unit's query row: new token row / group, head row % group of its KV head.
__device__ __forceinline__ i64 query_element(const Params& p, int request, int head, int row) {
  const i64 token = i64(request) * p.queries + row / p.group;
  return ((token * p.kv_heads + head) * p.group + row % p.group) * HEAD_DIM;
}
