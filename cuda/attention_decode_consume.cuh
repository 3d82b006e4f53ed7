// attention_decode: the consumer warps.
#pragma once
#include "attention_decode_merge.cuh"
#include "attention_decode_tile.cuh"

// Joins what the key groups left in the merge buffer, in their order.
__device__ __forceinline__ void merge_key_groups(const Params& p, const Shared& shared, const Unit& unit,
                                                 Standing standing, int rows, int thread) {
  constexpr int kQuads = HEAD_DIM / 4;
  for (int i = thread; i < rows * kQuads; i += kConsumerThreads) {
    const int row = i / kQuads, column = i % kQuads * 4;
    float max = kNegInf, sum = 0.f, out[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int g = 0; g < kKeyGroups; ++g) max = fmaxf(max, shared.merge_stats[g * ROWS + row].max);
#pragma unroll
    for (int g = 0; g < kKeyGroups; ++g) {
      const Partial stats = shared.merge_stats[g * ROWS + row];
      const float weight = exp2_fast(stats.max - (max == kNegInf ? 0.f : max));
      const float4 part = *reinterpret_cast<const float4*>(shared.merge + (g * ROWS + row) * kMergeStride + column);
      sum += stats.sum * weight;
      out[0] += part.x * weight, out[1] += part.y * weight, out[2] += part.z * weight, out[3] += part.w * weight;
    }
    settle(p, shared, unit, standing, row, column, Partial{max, sum}, out);
  }
}

// The same where each warp has its rows to itself (kKeyGroups == 1).
__device__ __forceinline__ void settle_rows(const Params& p, const Shared& shared, const State& state,
                                            const Unit& unit, Standing standing, int rows, const int (&my_row)[2],
                                            int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (my_row[i] >= rows) continue;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
      float two[2] = {state.out[n][2 * i], state.out[n][2 * i + 1]};
      settle(p, shared, unit, standing, my_row[i], n * 8 + lane % 4 * 2, Partial{state.max[i], state.sum[i]}, two);
    }
  }
}

__device__ __forceinline__ void consume(const Params& p, const Shared& shared, int thread) {
  const int lane = thread % 32, warp = thread / 32, run = blockIdx.x;
  const int key_group = warp / kRowTiles, row_tile = warp % kRowTiles;
  const int rows = p.group * p.queries;
  const int my_row[2] = {kNarrow ? lane % 4 * 2 : row_tile * 16 + lane / 4,
                         kNarrow ? lane % 4 * 2 + 1 : row_tile * 16 + lane / 4 + 8};
  const int my_token[2] = {my_row[0] / p.group, my_row[1] / p.group};
  const RunStart start = p.run_start[run], next = p.run_start[run + 1];
  const bool takes_over = start.origin < run && next.origin != start.origin, hands_over = next.origin <= run;
  Inheritance heir{};
  if (takes_over) heir = Inheritance(p, start);
  State state;
  Queries queries;
  Standing standing{start.origin < run, false};
  u32 base = 0;  // ring position of the unit's first tile
  const int units = next.unit - start.unit;
  for (int count = 0; count < units; ++count) {
    const u32 slot = count % kUnitSlots;
    barrier_wait(shared.unit_full + slot * 8, count / kUnitSlots & 1);
    const Unit unit = shared.units[slot];
    queries.load(shared.queries + slot * kQueryBytes, row_tile, lane);
    // The token after the last that each row sees, and the first.
    int row_end[2], row_first[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int end = unit.context - p.queries + my_token[i] + 1;
      row_first[i] = p.window > 0 ? max(0, end - p.window) : 0;
      row_end[i] = min(end, unit.end);
    }
    const int safe_end = min(unit.end, unit.context - p.queries + 1);  // all rows see keys before it
    const int safe_first = p.window > 0 ? max(0, unit.context - p.window) : 0;
    const int tiles = (unit.end - unit.first + TILE - 1) / TILE;
    state.reset();
    for (int t = key_group; t < tiles; t += kKeyGroups) {
      const Place place(base + t);
      const int token = unit.first + t * TILE;
      barrier_wait(shared.full + place.full, place.full_parity);
      const bool masked = token + TILE > safe_end || token < safe_first;
      const int limit[2] = {row_end[0] - token, row_end[1] - token};
      const int least[2] = {row_first[0] - token, row_first[1] - token};
      add_tile(p, state, queries, shared.ring + place.stage * kStageBytes, lane, unit.end - token, masked, least,
               limit);
      __syncwarp();
      if (lane == 0) barrier_arrive(shared.empty + place.stage * 8);
    }
    base += tiles;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      state.sum[i] = across_lanes(state.sum[i], [](float a, float b) { return a + b; });
    const bool last = unit.split + 1 == unit.count;
    standing.leaves = !standing.inherited && !last && count + 1 == units;
    if constexpr (kKeyGroups > 1) {
      named_sync(kConsumerBarrier, kConsumerThreads);  // the buffer's last readers are done
      state.store(shared.merge + key_group * ROWS * kMergeStride, shared.merge_stats + key_group * ROWS, rows, my_row,
                  lane);
      named_sync(kConsumerBarrier, kConsumerThreads);
      merge_key_groups(p, shared, unit, standing, rows, thread);
    } else {
      settle_rows(p, shared, state, unit, standing, rows, my_row, lane);
    }
    if (last) standing.inherited = false;
    barrier_arrive(shared.unit_empty + slot * 8);
  }
  wait_for_previous();  // in a run without units nobody has yet
  if (hands_over) hand_over(p, thread);
  if (takes_over) take_over(p, shared, heir, thread);
}
