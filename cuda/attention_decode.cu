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
// Block    A producer warp fills a ring of STAGES tiles of TILE keys (K and V), and slots with
//          each unit's description and queries, running ahead over unit borders; 4 (ROWS 128: 8)
//          consumer warps: tile t of a unit goes to key group t % kKeyGroups, each with its own
//          online softmax. At a unit's end the groups merge through shared memory in fixed
//          order. A request of several splits leaves float32 partials; a finisher warp takes
//          tickets, and where it took a request's last, merges them in order (a long request's
//          are left to the consumers, at the end). With 25 MB in flight on the whole device a
//          plain load takes thousands of cycles, so consumers make none.
// Fill     -DTMA=1: one box of the tensor copy engine per 64 columns of a block, swizzled;
//          else cp.async of 16 bytes with the same swizzle.
// SM       -DBLOCKS blocks share a multiprocessor; one loads while another ends a unit.
// Shared   ring STAGES * TILE * D' * 4 bytes (D' = D rounded up to 64), query slots, merge buffer
//          kKeyGroups * ROWS * (D + 8) * 4, barriers: kSharedBytes in attention_decode_shape.cuh.
// Bound by device memory: each K and V byte is read once.
// Limits   D in {64, 96, 128, 256}; block_size a power of two >= 16; Q*g <= 128; 16-bit elements.
#include "attention_decode_plan.cuh"
#include "attention_decode_tile.cuh"

// Where the parts of a block's shared memory lie.
struct Shared {
  u32 ring, queries, full, empty, unit_full, unit_empty, done, info_empty;
  float* merge;
  Partial* merge_stats;
  Unit* units;
  float* weights;  // kMaxSplits a consumer warp, then the finisher's
  int2* pending;   // (index, head) of requests that the consumers merge at the end; [0].x counts

  __device__ explicit Shared(u8* base) {
    u8* at = base;
    ring = shared_address(at), at += STAGES * kStageBytes;
    queries = shared_address(at), at += kUnitSlots * kQueryBytes;
    merge = reinterpret_cast<float*>(at), at += kMergeFloats * 4;
    merge_stats = reinterpret_cast<Partial*>(at), at += kKeyGroups * ROWS * 8;
    units = reinterpret_cast<Unit*>(at), at += kInfoSlots * 32;
    weights = reinterpret_cast<float*>(at), at += (kConsumers + 1) * kMaxSplits * 4;
    pending = reinterpret_cast<int2*>(at), at += (kMaxPending + 1) * 8;
    full = shared_address(at);
    empty = full + kFullBarriers * 8;
    unit_full = empty + STAGES * 8;
    unit_empty = unit_full + kUnitSlots * 8;
    done = unit_empty + kUnitSlots * 8;
    info_empty = done + kInfoSlots * 8;
  }
  __device__ void init() const {
    pending[0].x = 0;
    for (int i = 0; i < kFullBarriers; ++i) barrier_init(full + i * 8, kTma ? 1 : 32);
    for (int i = 0; i < STAGES; ++i) barrier_init(empty + i * 8, kRowTiles);
    for (int i = 0; i < kUnitSlots; ++i) {
      barrier_init(unit_full + i * 8, 33);
      barrier_init(unit_empty + i * 8, kConsumers);
    }
    for (int i = 0; i < kInfoSlots; ++i) {
      barrier_init(done + i * 8, kConsumers);
      barrier_init(info_empty + i * 8, 1);
    }
    barrier_init_fence();
  }
};

__device__ __forceinline__ u32 swizzled(int row, int chunk, int panel_bytes) {
  return u32((chunk >> 3) * panel_bytes + row * 128 + (((chunk & 7) ^ (row & 7)) << 4));
}

// Element offset of a unit's query row: new token row / group, head row % group of its KV head.
__device__ __forceinline__ i64 query_element(const Params& p, int request, int head, int row) {
  const i64 token = i64(request) * p.queries + row / p.group;
  return ((token * p.kv_heads + head) * p.group + row % p.group) * HEAD_DIM;
}

// ---- producer -------------------------------------------------------------

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
    shared.units[count % kInfoSlots] =
        Unit{split.request, split.first, split.end, split.split, split.count, split.context, index, head};
    barrier_arrive(landed);
  }
}

__device__ __forceinline__ void produce_tile(const Params& p, const TensorMap* map, const TableWindow& table,
                                             const Split& split, int head, int token, u32 stage, u32 landed,
                                             int lane) {
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
        tma_load_2d(stage + is_v * kHalfStage + panel * kPanelBytes + (box + slot) * box_rows * 128, map, panel * 64,
                    int(row), landed);
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
  u32 position = 0;
  for (int count = 0; count < units; ++count) {
    const Split split = now.split;
    barrier_wait(shared.unit_empty + count % kUnitSlots * 8, count / kUnitSlots & 1 ^ 1);
    barrier_wait(shared.info_empty + count % kInfoSlots * 8, count / kInfoSlots & 1 ^ 1);
    produce_unit(p, shared, split, now.index, now.head, count, lane);
    const auto look_ahead = [&] {
      soon_table.load(p, soon.split, soon.split.first >> p.block_shift, lane);
      later = soon.next(p, count + 2 >= units);
    };
    TableWindow table = now_table;
    for (int token = split.first; token < split.end; token += TILE, ++position) {
      const Place place(position);
      if ((min(token + TILE, split.end) - 1) >> p.block_shift >= table.from + 32)
        table.load(p, split, token >> p.block_shift, lane);
      barrier_wait(shared.empty + place.stage * 8, place.empty_parity);
      produce_tile(p, map, table, split, now.head, token, shared.ring + place.stage * kStageBytes,
                   shared.full + place.full, lane);
      if (token == split.first) look_ahead();  // not before: `soon` may be still on its way
    }
    if (split.first >= split.end) look_ahead();
    now = soon, now_table = soon_table, soon = later;
  }
}

// ---- merging --------------------------------------------------------------

// Final value of a row: its sum with the sink's share, inverted.
__device__ __forceinline__ float inverse_sum(const Params& p, float max, float sum, int head) {
  if (p.sinks != nullptr) {
    // The row's own maximum is the reference; a sink far above it drives the row to zero.
    sum += exp2_fast(p.sinks[head] * kLog2e - (max == kNegInf ? 0.f : max));
  }
  return sum > 0.f ? 1.f / sum : 0.f;
}

__device__ __forceinline__ void store4(Element* target, float a, float b, float c, float d) {
  *reinterpret_cast<uint2*>(target) = make_uint2(pack2<Element>(a, b), pack2<Element>(c, d));
}

// One warp folds the partials of kRowsAtOnce rows of a request and KV head, in order of splits: the
// same arithmetic whoever calls. `weights`: kRowsAtOnce * kMost floats.
template <int kRowsAtOnce, int kMost>
__device__ __forceinline__ void merge_rows(const Params& p, int request, int index, int head, int splits, int row,
                                           int rows, float* weights, int lane) {
  const i64 stride = i64(p.kv_heads) * rows;  // partial rows from a split to the next
  const i64 first = (i64(index) * p.kv_heads + head) * rows + row;
  constexpr int kPerLane = (kMost + 31) / 32;
  Partial mine[kRowsAtOnce][kPerLane];
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      mine[r][i] = Partial{kNegInf, 0.f};
      if (i * 32 + lane < splits && row + r < rows) mine[r][i] = p.partial_stats[first + r + (i * 32 + lane) * stride];
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) {
    float max = kNegInf, sum = 0.f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) max = fmaxf(max, mine[r][i].max);
    max = warp_max(max);
    const float base = max == kNegInf ? 0.f : max;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      mine[r][i].max = exp2_fast(mine[r][i].max - base);
      sum += mine[r][i].sum * mine[r][i].max;
    }
    const float scale = inverse_sum(p, max, warp_sum(sum), head * p.group + (row + r) % p.group);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (i * 32 + lane < kMost) weights[r * kMost + i * 32 + lane] = mine[r][i].max * scale;
  }
  __syncwarp();
  constexpr int kBatch = 16 / kRowsAtOnce;  // loads in flight for each row
#pragma unroll 1
  for (int column = lane * 4; column < HEAD_DIM; column += 128) {
    float sum[kRowsAtOnce][4] = {};
#pragma unroll 1
    for (int s0 = 0; s0 < splits; s0 += kBatch) {
      Vec16 part[kRowsAtOnce][kBatch];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const float* source = p.partial_out + (first + min(r, rows - row - 1)) * HEAD_DIM + column;
#pragma unroll
        for (int s = 0; s < kBatch; ++s) part[r][s] = load16(source + min(s0 + s, splits - 1) * stride * HEAD_DIM);
      }
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma unroll
        for (int s = 0; s < kBatch; ++s) {  // past the last split the weight is 0
          const float weight = weights[r * kMost + s0 + s];
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[r][c] += weight * __uint_as_float(part[r][s].word[c]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r)
      if (row + r < rows)
        store4(p.out + query_element(p, request, head, row + r) + column, sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
  }
  __syncwarp();
}

// Merges a request and head whose last partial is in, or leaves it to the consumers.
__device__ __forceinline__ void finish_request(const Params& p, const Shared& shared, const Unit& unit, int& pending,
                                               int lane) {
  const int rows = p.group * p.queries, index = unit.index - unit.split;
  float* weights = shared.weights + kConsumers * kMaxSplits;
  if (unit.count <= kFinisherSplits) {
    for (int row = 0; row < rows; row += 4)
      merge_rows<4, kFinisherSplits>(p, unit.request, index, unit.head, unit.count, row, rows, weights, lane);
  } else if (pending < kMaxPending) {
    ++pending;
    if (lane == 0) shared.pending[pending] = make_int2(index, unit.head);
  } else {
    for (int row = 0; row < rows; ++row)
      merge_rows<1, kMaxSplits>(p, unit.request, index, unit.head, unit.count, row, rows, weights, lane);
  }
}

// Takes tickets for the units of divided requests, all that are done at once: a fence and an atomic
// cost the same for one unit as for 16.
__device__ __forceinline__ void finish(const Params& p, const Shared& shared, int lane) {
  const int units = p.run_start[blockIdx.x + 1].unit - p.run_start[blockIdx.x].unit;
  int pending = 0;
  for (int count = 0; count < units;) {
    barrier_wait(shared.done + count % kInfoSlots * 8, count / kInfoSlots & 1);
    const u32 mine = count + lane, slot = mine % kInfoSlots;
    const bool done = lane < kInfoSlots && mine < units && barrier_test(shared.done + slot * 8, mine / kInfoSlots & 1);
    const int ready = __ffs(~__ballot_sync(~0u, done)) - 1;  // done without a gap
    Unit unit = {};
    if (lane < ready) {
      unit = shared.units[slot];
      barrier_arrive(shared.info_empty + slot * 8);
    }
    bool last = false;
    if (unit.count > 1) {
      i32* ticket = p.tickets + i64(unit.request) * p.kv_heads + unit.head;
      __threadfence();  // the consumers' partials, seen through `done`, before the ticket
      last = atomicAdd(ticket, 1) == unit.count - 1;
      if (last) *ticket = 0;  // ready for the next launch
    }
    u32 lasts = __ballot_sync(~0u, last);
    if (lasts) __threadfence();  // the ticket before others' partials
    for (; lasts; lasts &= lasts - 1) {
      const int from = __ffs(lasts) - 1;
      Unit whole;
      whole.request = __shfl_sync(~0u, unit.request, from);
      whole.split = __shfl_sync(~0u, unit.split, from);
      whole.count = __shfl_sync(~0u, unit.count, from);
      whole.index = __shfl_sync(~0u, unit.index, from);
      whole.head = __shfl_sync(~0u, unit.head, from);
      finish_request(p, shared, whole, pending, lane);
    }
    count += ready;
  }
  if (lane == 0) shared.pending[0].x = pending;
}

// ---- consumers ------------------------------------------------------------

#if HAS_TMA
// A copied box may hold rows past the end, and uncopied rows anything: zero V there, so that 0 * NaN stays out.
__device__ __forceinline__ void zero_values(u32 values, int from, int key_group, int lane) {
  for (int i = lane + from * kPanels * 8; i < TILE * kPanels * 8; i += 32) {
    const u32 at = values + swizzled(i / (kPanels * 8), i % (kPanels * 8), kPanelBytes);
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
  }
  fence_async_shared();
  if (kRowTiles > 1) named_sync<kRowTiles * 32>(2 + key_group);
  __syncwarp();
}
#endif

// A finished row of a unit: the output itself, or a partial of a divided request.
__device__ __forceinline__ void merge_key_groups(const Params& p, const Shared& shared, const Unit& unit, int rows,
                                                 int thread) {
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
    if (unit.count == 1) {
      const float scale = inverse_sum(p, max, sum, unit.head * p.group + row % p.group);
      store4(p.out + query_element(p, unit.request, unit.head, row) + column, out[0] * scale, out[1] * scale,
             out[2] * scale, out[3] * scale);
    } else {
      const i64 at = (i64(unit.index) * p.kv_heads + unit.head) * rows + row;
      *reinterpret_cast<float4*>(p.partial_out + at * HEAD_DIM + column) = make_float4(out[0], out[1], out[2], out[3]);
      if (column == 0) p.partial_stats[at] = Partial{max, sum};
    }
  }
}

// The same where each warp has its rows to itself (kKeyGroups == 1).
__device__ __forceinline__ void store_rows(const Params& p, const State& state, const Unit& unit, int rows,
                                           const int (&my_row)[2], int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = my_row[i], column = (lane % 4) * 2;
    if (row >= rows) continue;
    if (unit.count == 1) {
      const float scale = inverse_sum(p, state.max[i], state.sum[i], unit.head * p.group + row % p.group);
      Element* target = p.out + query_element(p, unit.request, unit.head, row) + column;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n)
        *reinterpret_cast<u32*>(target + n * 8) =
            pack2<Element>(state.out[n][2 * i] * scale, state.out[n][2 * i + 1] * scale);
    } else {
      const i64 at = (i64(unit.index) * p.kv_heads + unit.head) * rows + row;
      float* target = p.partial_out + at * HEAD_DIM + column;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n)
        *reinterpret_cast<float2*>(target + n * 8) = make_float2(state.out[n][2 * i], state.out[n][2 * i + 1]);
      if (lane % 4 == 0) p.partial_stats[at] = Partial{state.max[i], state.sum[i]};
    }
  }
}

__device__ __forceinline__ void consume(const Params& p, const Shared& shared, int thread) {
  const int lane = thread % 32, warp = thread / 32;
  const int key_group = warp / kRowTiles, row_tile = warp % kRowTiles;
  const int rows = p.group * p.queries;
  const int my_row[2] = {kNarrow ? lane % 4 * 2 : row_tile * 16 + lane / 4,
                         kNarrow ? lane % 4 * 2 + 1 : row_tile * 16 + lane / 4 + 8};
  const int my_token[2] = {my_row[0] / p.group, my_row[1] / p.group};
  State state;
  Queries queries;
  u32 base = 0;  // ring position of the unit's first tile
  const int units = p.run_start[blockIdx.x + 1].unit - p.run_start[blockIdx.x].unit;
  for (int count = 0; count < units; ++count) {
    const u32 slot = count % kUnitSlots;
    barrier_wait(shared.unit_full + slot * 8, count / kUnitSlots & 1);
    const Unit unit = shared.units[count % kInfoSlots];
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
      const u32 keys = shared.ring + place.stage * kStageBytes;
      barrier_wait(shared.full + place.full, place.full_parity);
#if HAS_TMA
      if (kTma && token + TILE > unit.end) zero_values(keys + kHalfStage, unit.end - token, key_group, lane);
#endif
      const bool masked = token + TILE > safe_end || token < safe_first;
      const int limit[2] = {row_end[0] - token, row_end[1] - token};
      const int least[2] = {row_first[0] - token, row_first[1] - token};
      add_tile(p, state, queries, keys, lane, masked, least, limit);
      __syncwarp();
      if (lane == 0) barrier_arrive(shared.empty + place.stage * 8);
    }
    base += tiles;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      state.sum[i] = across_lanes(state.sum[i], [](float a, float b) { return a + b; });
    if constexpr (kKeyGroups > 1) {
      named_sync<kConsumerThreads>(1);  // the buffer's last readers are done
      state.store(shared.merge + key_group * ROWS * kMergeStride, shared.merge_stats + key_group * ROWS, rows, my_row,
                  lane);
      named_sync<kConsumerThreads>(1);
      merge_key_groups(p, shared, unit, rows, thread);
    } else {
      store_rows(p, state, unit, rows, my_row, lane);
    }
    __syncwarp();
    if (lane == 0) {
      barrier_arrive(shared.done + count % kInfoSlots * 8);
      barrier_arrive(shared.unit_empty + slot * 8);
    }
  }
}

// Grid: as many blocks as the plan has runs. Block: kThreads.
extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    attention_decode(const __grid_constant__ Params p, const __grid_constant__ TensorMap map) {
  extern __shared__ __align__(1024) u8 memory[];
  const Shared shared(memory);
  if (threadIdx.x == 0) shared.init();
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == kConsumers) {
    produce(p, &map, shared, lane);
    return;
  }
  if (warp < kConsumers) {
    consume(p, shared, threadIdx.x);
  } else {
    finish(p, shared, lane);
  }
  named_sync<kConsumerThreads + 32>(6);  // the finisher's list is complete
  if (warp > kConsumers) return;
  const int rows = p.group * p.queries, pending = shared.pending[0].x;
  for (int i = warp; i < pending * rows; i += kConsumers) {
    const int2 request = shared.pending[1 + i / rows];
    const Split split = p.splits[request.x];
    merge_rows<1, kMaxSplits>(p, split.request, request.x, request.y, split.count, i % rows, rows,
                              shared.weights + warp * kMaxSplits, lane);
  }
}
