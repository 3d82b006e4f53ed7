// attention_decode: what becomes of a unit's rows. The splits of a request and head are folded one after the
// other, first to last, with the same arithmetic wherever that happens: in the block that has them all, or in
// the block that has the last, from the partials that the blocks before it left in device memory.
#pragma once
#include "attention_decode_shape.cuh"

// What folding b into a multiplies each of them by; makes a's statistics those of both.
struct Fold {
  float before, after;

  __device__ __forceinline__ Fold(Partial& a, const Partial& b) {
    const float max = fmaxf(a.max, b.max), base = max == kNegInf ? 0.f : max;
    before = exp2_fast(a.max - base);
    after = exp2_fast(b.max - base);
    a = Partial{max, value(a.sum, b.sum)};
  }
  // Spelled out, so that no compilation contracts it in another way.
  __device__ __forceinline__ float value(float a, float b) const { return __fmaf_rn(b, after, __fmul_rn(a, before)); }
};

__device__ __forceinline__ i64 partial_row(const Params& p, int index, int head, int row) {
  return (i64(index) * p.kv_heads + head) * (p.group * p.queries) + row;
}

template <int kCount>  // 2 or 4 floats
__device__ __forceinline__ void load_floats(float (&x)[kCount], const float* source) {
#pragma unroll
  for (int c = 0; c < kCount; c += 2) {
    const float2 two = *reinterpret_cast<const float2*>(source + c);
    x[c] = two.x, x[c + 1] = two.y;
  }
}
template <int kCount>
__device__ __forceinline__ void store_floats(float* target, const float (&x)[kCount]) {
  if constexpr (kCount == 4) {
    *reinterpret_cast<float4*>(target) = make_float4(x[0], x[1], x[2], x[3]);
  } else {
    *reinterpret_cast<float2*>(target) = make_float2(x[0], x[1]);
  }
}

// The end of a row's columns: divided by its sum with the sink's share, and stored.
template <int kCount>
__device__ __forceinline__ void store_out(const Params& p, int request, int head, int row, int column, Partial stats,
                                          const float (&x)[kCount]) {
  float sum = stats.sum;
  if (p.sinks != nullptr) {
    // The row's own maximum is the reference; a sink far above it drives the row to zero.
    sum += exp2_fast(p.sinks[head * p.group + row % p.group] * kLog2e - (stats.max == kNegInf ? 0.f : stats.max));
  }
  const float scale = sum > 0.f ? 1.f / sum : 0.f;
  u32* target = reinterpret_cast<u32*>(p.out + query_element(p, request, head, row) + column);
#pragma unroll
  for (int c = 0; c < kCount; c += 2) target[c / 2] = pack2<Element>(x[c] * scale, x[c + 1] * scale);
}

// Where a unit stands in its block's run.
struct Standing {
  bool inherited;  // its request and head began in an earlier run: partials are left for whoever has the last split
  bool leaves;     // the run ends inside of its request and head: the sum so far is left as one partial
};

// Takes kCount columns of one row of a unit: the output, a partial, or the block's running sum.
template <int kCount>
__device__ __forceinline__ void settle(const Params& p, const Shared& shared, const Unit& unit, Standing standing,
                                       int row, int column, Partial stats, float (&x)[kCount]) {
  const i64 first = partial_row(p, unit.index - unit.split, unit.head, row);
  float* sum = (kSharedSum ? shared.sum + row * HEAD_DIM : p.partial_out + first * HEAD_DIM) + column;
  if (!standing.inherited && unit.split > 0) {
    Partial both = shared.sum_stats[(unit.split - 1 & 1) * ROWS + row];
    const Fold fold(both, stats);
    float before[kCount];
    load_floats(before, sum);
#pragma unroll
    for (int c = 0; c < kCount; ++c) x[c] = fold.value(before[c], x[c]);
    stats = both;
  }
  if (standing.inherited || standing.leaves) {
    const i64 at = standing.inherited ? partial_row(p, unit.index, unit.head, row) : first;
    store_floats(p.partial_out + at * HEAD_DIM + column, x);
    if (column == 0) p.partial_stats[at] = stats;
  } else if (unit.split + 1 == unit.count) {
    store_out(p, unit.request, unit.head, row, column, stats, x);
  } else {
    store_floats(sum, x);
    if (column == 0) shared.sum_stats[(unit.split & 1) * ROWS + row] = stats;
  }
}

// Says that the run's partials are in memory. All consumers call.
__device__ __forceinline__ void hand_over(const Params& p, int thread) {
  named_sync(kConsumerBarrier, kConsumerThreads);
  if (thread == 0) asm volatile("st.release.gpu.s32 [%0], 1;" ::"l"(p.handed_over + blockIdx.x) : "memory");
}

// A request and head whose last split is in this run and whose first is in an earlier one.
struct Inheritance {
  i32 request, head, origin;
  i32 first, count;  // its splits' places in the plan
  i32 prefix;        // splits that the run of origin left as one partial

  Inheritance() = default;
  __device__ __forceinline__ Inheritance(const Params& p, const RunStart& start) {
    const Split split = p.run_first[blockIdx.x];
    request = split.request, head = start.head, origin = start.origin;
    first = start.index - split.split, count = split.count;
    prefix = p.run_first[origin + 1].split;
  }
};

// Waits for the runs that have the earlier splits, and folds all of them. Runs before this one have started
// before it, so they get there. All partials that the ring can hold are fetched at once: their way is long, and
// the block is the last one at work. All consumers call.
__device__ __forceinline__ void take_over(const Params& p, const Shared& shared, const Inheritance& heir, int thread) {
  for (int run = heir.origin + thread; run < blockIdx.x; run += kConsumerThreads) {
    i32 there;
    do {
      asm volatile("ld.acquire.gpu.s32 %0, [%1];" : "=r"(there) : "l"(p.handed_over + run) : "memory");
    } while (there == 0);
    p.handed_over[run] = 0;  // for the next launch; nobody else reads it
  }
  constexpr int kQuads = HEAD_DIM / 4, kRows = ROWS < 16 ? ROWS : 16;  // at once
  constexpr int kMine = (kRows * kQuads + kConsumerThreads - 1) / kConsumerThreads;  // quads of a thread
  constexpr int kRoom = STAGES * kStageBytes / (kRows * (HEAD_DIM * 4 + 8));
  static_assert(kRoom >= 1, "the ring holds a partial");
  const int parts = 1 + heir.count - heir.prefix;
  for (int row0 = 0; row0 < p.group * p.queries; row0 += kRows) {
    const int rows = min(kRows, p.group * p.queries - row0), quads = rows * kQuads;
    const auto row_of = [&](int part) {
      return partial_row(p, heir.first + (part == 0 ? 0 : heir.prefix + part - 1), heir.head, row0);
    };
    float x[kMine][4];
    Partial stats[kMine];
    for (int from = 0; from < parts; from += kRoom) {
      const int here = min(kRoom, parts - from);
      const float* held = reinterpret_cast<const float*>(shared.base);
      Partial* held_stats = reinterpret_cast<Partial*>(shared.base + here * quads * 16);
      named_sync(kConsumerBarrier, kConsumerThreads);  // the earlier runs are done; the ring is free
      for (int part = 0; part < here; ++part) {
        const float* source = p.partial_out + row_of(from + part) * HEAD_DIM;
        for (int i = thread; i < quads; i += kConsumerThreads)
          cp_async16(shared.ring + (part * quads + i) * 16, source + i * 4, true);
      }
      cp_async_commit();
      for (int i = thread; i < here * rows; i += kConsumerThreads)
        held_stats[i] = p.partial_stats[row_of(from + i / rows) + i % rows];
      cp_async_wait<0>();
      named_sync(kConsumerBarrier, kConsumerThreads);
#pragma unroll
      for (int m = 0; m < kMine; ++m) {
        const int i = thread + m * kConsumerThreads, row = i / kQuads;
        if (i >= quads) break;
        if (from == 0) {
          stats[m] = held_stats[row];
          load_floats(x[m], held + i * 4);
        }
#pragma unroll 4
        for (int part = from == 0; part < here; ++part) {
          const Fold fold(stats[m], held_stats[part * rows + row]);
          float after[4];
          load_floats(after, held + (part * quads + i) * 4);
#pragma unroll
          for (int c = 0; c < 4; ++c) x[m][c] = fold.value(x[m][c], after[c]);
        }
        if (from + here == parts)
          store_out(p, heir.request, heir.head, row0 + row, i % kQuads * 4, stats[m], x[m]);
      }
    }
  }
}
