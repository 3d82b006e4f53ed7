// attention_decode: sizes, and what the plan, the launcher and the kernel agree on.
#pragma once
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
constexpr int kThreads = kConsumerThreads + 64;  // and a producer warp, and a finisher warp
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
constexpr int kUnitSlots = ROWS <= 64 ? 2 : 1;  // units whose queries are at hand
constexpr int kInfoSlots = 16;  // units that the finisher may lag behind
constexpr int kFinisherSplits = 16;  // a request of more is merged by the consumers, at the end
constexpr int kMaxPending = 31;
// A key group skips the others' tiles, so it may wait for a stage before the stage's last use has
// landed; parity cannot tell the two apart on one barrier, but does on alternate ones.
constexpr int kFullBarriers = 2 * STAGES;
constexpr int kBarriers = kFullBarriers + STAGES + 2 * kUnitSlots + 2 * kInfoSlots;
constexpr int kSharedBytes = STAGES * kStageBytes + kUnitSlots * kQueryBytes + kMergeFloats * 4 +
                             kKeyGroups * ROWS * 8 + kInfoSlots * 32 + kBarriers * 8 +
                             (kConsumers + 1) * kMaxSplits * 4 + (kMaxPending + 1) * 8;
#ifdef SHARED_BYTES  // what the launcher will ask for
static_assert(kSharedBytes == SHARED_BYTES, "the tile choice counts shared memory otherwise");
#endif
static_assert(kKeyGroups <= STAGES || kKeyGroups == 1, "see kFullBarriers");
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
// Where a block's run of units begins: the unit's number, its split's place in the plan, its head.
struct alignas(16) RunStart {
  i32 unit, index, head, unused;
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
  i32* tickets;            // [B * H_kv], zero between launches
  i64 block_stride;        // elements from a block to the next
  i64 first_row;           // of this layer in the tensor map, whose rows are D elements
  i64 block_rows;          // rows of a block, all layers
  i32 max_blocks, block_shift, kv_heads, group, queries, window;
  float scale_log2, soft_cap;  // scale * log2(e); 0: no cap
};
