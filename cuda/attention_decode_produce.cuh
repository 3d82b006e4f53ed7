// attention_decode: the producer warp, which brings queries and tiles of keys and values.
#pragma once
#include "attention_decode_shape.cuh"

__device__ __forceinline__ u32 swizzled(int row, int chunk, int panel_bytes) {
  return u32((chunk >> 3) * panel_bytes + row * 128 + (((chunk & 7) ^ (row & 7)) << 4));
}

// Block ids of a split: lane i holds that of block `from` + i.
struct TableWindow {
  int from;
  i32 held;

  __device__ void load(const Params& p, const Split& split, int first_block, int lane) {
    from = first_block;
    const bool inside = from + lane <= (split.end - 1) >> p.block_shift;
    held = inside ? p.block_tables[i64(split.request) * p.max_blocks + from + lane] : 0;
  }
  __device__ i32 block(const Params& p, int token) const {
    return __shfl_sync(~0u, held, ((token >> p.block_shift) - from) & 31);
  }
};

__device__ __forceinline__ void produce_unit(const Params& p, const Shared& shared, const Split& split, int index,
                                             int head, int count, int lane) {
  const int slot = count % kUnitSlots;
  const u32 landed = shared.unit_full + slot * 8;
  constexpr int kChunks = HEAD_DIM / 8;
  const int rows = p.group * p.queries;
  for (int i = lane; i < kQueryRows * kChunks; i += 32) {
    const int row = i / kChunks, chunk = i % kChunks;
    const Element* source = p.q + (row < rows ? query_element(p, split.request, head, row) + chunk * 8 : 0);
    cp_async16(shared.queries + slot * kQueryBytes + swizzled(row, chunk, kQueryPanelBytes), source, row < rows);
  }
  barrier_arrive_cp_async(landed);
  if (lane == 0) {
    shared.units[slot] =
        Unit{split.request, split.first, split.end, split.split, split.count, split.context, index, head};
    barrier_arrive(landed);
  }
}

__device__ __forceinline__ void produce_tile(const Params& p, const TensorMap* map, const TableWindow& table,
                                             const Split& split, int head, int token, u32 stage, u32 landed,
                                             u64 policy, int lane) {
  const int block_size = 1 << p.block_shift;
#if HAS_TMA
  if constexpr (kTma) {
    const int box_rows = min(block_size, TILE);
    const int boxes = (min(TILE, split.end - token) + box_rows - 1) / box_rows;
    if (lane == 0) barrier_expect(landed, boxes * box_rows * kPanels * 256);
    __syncwarp();
    // One lane per box: `boxes` positions in the tile x K, V x panels.
    const int slot = lane / (2 * kPanels), is_v = lane / kPanels % 2, panel = lane % kPanels;
    for (int box = 0; box < boxes; box += 16 / kPanels) {
      const int at = token + (box + slot) * box_rows;
      const i32 block = table.block(p, at);
      if (box + slot < boxes) {
        const i64 row = i64(block) * p.block_rows + p.first_row + i64(is_v * p.kv_heads + head) * block_size +
                        (at & (block_size - 1));
        tma_load_2d(stage + is_v * kHalfStage + panel * kPanelBytes + (box + slot) * box_rows * 128, map, landed,
                    panel * 64, int(row), policy);
      }
    }
    return;
  }
#endif
  constexpr int kChunks = HEAD_DIM / 8;  // of 16 bytes, in a row
  const i64 v_offset = i64(p.kv_heads) * block_size * HEAD_DIM;
#pragma unroll 4
  for (int i = lane; i < TILE * kChunks; i += 32) {
    const int row = i / kChunks, chunk = i % kChunks, at = token + row;
    const bool inside = at < split.end;
    const i32 block = table.block(p, at);
    const Element* k = p.kv + (inside ? block * p.block_stride +
                                            (i64(head) * block_size + (at & (block_size - 1))) * HEAD_DIM + chunk * 8
                                      : 0);
    const u32 target = stage + swizzled(row, chunk, kPanelBytes);
    cp_async16(target, k, inside);
    cp_async16(target + kHalfStage, k + (inside ? v_offset : 0), inside);
  }
  barrier_arrive_cp_async(landed);
}

// The units after a block's first, in order of split, head, request. `index` runs over splits.
struct Cursor {
  Split split;
  int index, head;

  // Loads the next unit's split. A plan ends with its last unit, so the last call reads a split again.
  __device__ Cursor next(const Params& p, bool last) const {
    Cursor after{split, index + 1, head};
    if (split.split + 1 == split.count) {
      const bool same_request = head + 1 < p.kv_heads;
      after.head = same_request ? head + 1 : 0;
      if (same_request) after.index = index + 1 - split.count;
    }
    if (!last) after.split = p.splits[after.index];
    return after;
  }
};

__device__ __forceinline__ void produce(const Params& p, const TensorMap* map, const Shared& shared, int lane) {
  const RunStart start = p.run_start[blockIdx.x];
  const int units = p.run_start[blockIdx.x + 1].unit - start.unit;
  Cursor now{p.run_first[blockIdx.x], start.index, start.head};
  if (units == 0) return;
  // While a unit's tiles are issued, the next one's block ids and the split after that are under way.
  TableWindow now_table, soon_table;
  now_table.load(p, now.split, now.split.first >> p.block_shift, lane);
  Cursor soon = now.next(p, units < 2), later = soon;
  u64 policy = 0;
#if HAS_TMA
  policy = evict_first_policy();
#endif
  u32 position = 0;
  bool waited = false;  // for the kernel before, which may have made the queries and the newest keys
  for (int count = 0; count < units; ++count) {
    const Split split = now.split;
    const auto describe = [&] {
      barrier_wait(shared.unit_empty + count % kUnitSlots * 8, count / kUnitSlots & 1 ^ 1);
      produce_unit(p, shared, split, now.index, now.head, count, lane);
    };
    const auto look_ahead = [&] {
      soon_table.load(p, soon.split, soon.split.first >> p.block_shift, lane);
      later = soon.next(p, count + 2 >= units);
    };
    if (waited) describe();
    TableWindow table = now_table;
    for (int token = split.first; token < split.end; token += TILE, ++position) {
      const Place place(position);
      if ((min(token + TILE, split.end) - 1) >> p.block_shift >= table.from + 32)
        table.load(p, split, token >> p.block_shift, lane);
      if (!waited && (position == kEarlyTiles || token + TILE > split.context - p.queries)) {
        wait_for_previous();
        describe();
        waited = true;
      }
      barrier_wait(shared.empty + place.stage * 8, place.empty_parity);
      produce_tile(p, map, table, split, now.head, token, shared.ring + place.stage * kStageBytes,
                   shared.full + place.full, policy, lane);
      if (token == split.first) look_ahead();  // not before: `soon` may be still on its way
    }
    if (split.first >= split.end) look_ahead();
    if (!waited) {
      wait_for_previous();
      describe();
      waited = true;
    }
    now = soon, now_table = soon_table, soon = later;
  }
}
