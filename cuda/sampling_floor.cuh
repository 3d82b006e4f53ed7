// sampling: floors (top-k, top-p) without a sort: lists of candidates, histograms of masses, bits of keys.
#pragma once
#include "sampling_row.cuh"

__device__ __forceinline__ u64 mass_of(u32 key, float largest) {
  return u64(expf(value_of(key) - largest) * 4294967296.f);  // of the largest token: 2^32
}

// find_key bit by bit: 32 looks at the field.
template <class Measure>
__device__ __noinline__ u32 find_key_by_bits(const Field& field, u64 target, Scratch& scratch, Measure measure) {
  u32 found = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const u32 trial = found | 1u << bit;
    u64 mine = 0;
    field.each([&](int, u32 key) { mine += key >= trial ? measure(key) : 0; });
    if (block_total(mine, scratch) >= target) found = trial;
  }
  return found;
}

constexpr float kRange = 32.f;  // of scaled logits, below the largest: what the bins cover

// Bin of a key, 0 the highest; the last one holds all that is below the range.
__device__ __forceinline__ int bin_of(u32 key, float largest) {
  return int(fminf((largest - value_of(key)) * (kBins / kRange), kBins - 1.f));
}
__device__ __forceinline__ u64 bin_sum(const Scratch& scratch, int bin) {
  return u64(scratch.high[bin]) << 32 | scratch.low[bin];
}

// Adds up a measure over the field by bins.
template <class Measure>
__device__ __noinline__ void fill_bins(const Field& field, float largest, Scratch& scratch, Measure measure) {
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) scratch.low[i] = scratch.high[i] = 0;
  __syncthreads();
  field.each([&](int, u32 key) {
    const u64 amount = measure(key);
    if (amount == 0) return;
    const int bin = bin_of(key, largest);
    const u32 before = atomicAdd(&scratch.low[bin], u32(amount));
    const u32 high = u32(amount >> 32) + (before + u32(amount) < before);
    if (high) atomicAdd(&scratch.high[bin], high);
  });
  __syncthreads();
}

// The bin in which the sum from the highest bin on reaches a target, and the sum `above` it; kBins if it does
// not. Every warp finds it for itself: a lane sums kBins / 32 bins, lanes scan, one lane's bins are walked.
__device__ __forceinline__ int find_bin(const Scratch& scratch, u64 target, u64& above) {
  constexpr int kEach = kBins / 32;
  const int lane = threadIdx.x % 32;
  u64 sum = 0;
  for (int i = 0; i < kEach; ++i) sum += bin_sum(scratch, lane * kEach + i);
  u64 reach = sum;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const u64 other = __shfl_up_sync(~0u, reach, step);
    if (lane >= step) reach += other;
  }
  const u32 reached = __ballot_sync(~0u, reach >= target);
  if (reached == 0) return kBins;
  const int from = __ffs(reached) - 1;
  above = __shfl_sync(~0u, reach - sum, from);
  int bin = from * kEach;
  while (above + bin_sum(scratch, bin) < target) above += bin_sum(scratch, bin++);
  return bin;
}

// find_key for a whole row: a histogram finds the bin that the target falls into, and the bits are then
// searched among that bin's tokens alone.
template <class Measure>
__device__ __noinline__ u32 find_key_by_bins(const Field& field, float largest, u64 target, Scratch& scratch,
                                             Measure measure) {
  fill_bins(field, largest, scratch, measure);
  u64 above;
  const int bin = find_bin(scratch, target, above);
  if (bin == kBins) return 0;
  if (bin == kBins - 1) return find_key_by_bits(field, target, scratch, measure);  // below the range
  if (threadIdx.x == 0) scratch.count = 0;
  __syncthreads();
  field.each([&](int token, u32 key) {
    if (measure(key) != 0 && bin_of(key, largest) == bin) {
      const u32 at = atomicAdd(&scratch.count, 1);
      if (at < kCandidates) scratch.candidates[at] = Candidate{key, token};
    }
  });
  __syncthreads();
  const u32 count = scratch.count;
  __syncthreads();  // all have read it before it is set anew
  if (count > kCandidates) return find_key_by_bits(field, target, scratch, measure);
  const Field few{field.row, field.vocabulary, field.temperature, scratch.candidates, int(count)};
  return find_key_by_bits(few, target - above, scratch, measure);
}

// The largest key whose tokens at or above it measure at least `target` together; 0 if all do not.
template <class Measure>
__device__ __forceinline__ u32 find_key(const Field& field, u64 target, float largest, Scratch& scratch,
                                        Measure measure) {
  return field.listed >= 0 ? find_key_by_bits(field, target, scratch, measure)
                           : find_key_by_bins(field, largest, target, scratch, measure);
}

// The k-th largest of the threads' own raw logits, or a little less (found to 10 bits of its mantissa): at least k of
// the row are at or above it.
__device__ float kth_of_threads(u32 mine, int k) {
  u32 found = 0;
  for (int bit = 31; bit >= 13; --bit) {
    const u32 trial = found | 1u << bit;
    if (__syncthreads_count(mine >= trial) >= k) found = trial;
  }
  return found <= 0x007fffffu ? kNegInf : value_of(found);  // fewer than k threads have a token above -infinity
}

// Narrows a whole row to a list of the tokens whose raw logit is at least `least`, unless they are too many.
__device__ __noinline__ void collect(Field& field, float least, Scratch& scratch) {
  __syncthreads();
  if (threadIdx.x == 0) scratch.count = 0;
  __syncthreads();
  scan(field.row, field.vocabulary, [&](int token, float x) {
    if (x >= least) {
      const u32 at = atomicAdd(&scratch.count, 1);
      if (at < kCandidates) scratch.candidates[at] = Candidate{field.scaled(x), token};
    }
  });
  __syncthreads();
  const u32 count = scratch.count;
  __syncthreads();  // all have read it before it is set anew
  if (count <= kCandidates) {
    field.list = scratch.candidates;
    field.listed = count;
  }
}

// Floor by top-k (0: off), then top-p over what that leaves; `total`: mass of the whole row, if no top-k.
__device__ __noinline__ u32 find_floor(const Field& field, i32 top_k, float top_p, u64 total, float largest, Scratch& scratch) {
  const bool cut_k = top_k > 0, cut_p = top_p < 1.f;
  if (field.listed >= 0 && field.listed <= kThreads) {
    // Few: every thread ranks its own candidate among all.
    const bool have = threadIdx.x < field.listed;
    const u32 own = have ? field.list[threadIdx.x].key : 0;
    __syncthreads();
    if (have) scratch.masses[threadIdx.x] = mass_of(own, largest);
    if (threadIdx.x == 0) scratch.kth = scratch.nucleus = 0, scratch.total = total;
    __syncthreads();
    int above = 0, reach = 0;
    u64 mass = 0;
#pragma unroll 8
    for (int i = 0; i < field.listed; ++i) {
      const u32 key = field.list[i].key;
      above += key > own;
      if (key >= own) ++reach, mass += scratch.masses[i];
    }
    if (have && cut_k && above < top_k && reach >= top_k) scratch.kth = own, scratch.total = mass;
    __syncthreads();
    const u64 target = u64(double(scratch.total) * top_p);
    if (have && cut_p && own >= scratch.kth && mass >= target) atomicMax(&scratch.nucleus, own);
    __syncthreads();
    return max(scratch.kth, scratch.nucleus);
  }
  const u32 kth = cut_k ? find_key(field, top_k, largest, scratch, [](u32) { return u64(1); }) : 0;
  if (!cut_p) return kth;
  const auto mass = [&](u32 key) { return key >= kth ? mass_of(key, largest) : u64(0); };
  if (cut_k) {
    total = 0;
    field.each([&](int, u32 key) { total += mass(key); });
    total = block_total(total, scratch);
  }
  const u64 target = u64(double(total) * top_p);
  return max(kth, find_key(field, target > 0 ? target : 1, largest, scratch, mass));
}
