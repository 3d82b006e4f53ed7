// sampling: the next token of each row of logits, its log-probability and the most likely tokens.
//
// sampling_adjust  for rows that ask: work[row] = logits[row] with penalties, logit bias, masked endings and
//                  a bitmask of allowed tokens, in the order and arithmetic of the CPU sampler's adjustments.
// sampling         greedy, or  argmax over tokens with logit / T >= floor of  logit / T + g, where
//                  the floor is top-k, then top-p over what is left, then min-p, and g is Gumbel
//                  noise from Philox4x32-10 at (seed, position, token): the CPU sampler's race, so
//                  both draw alike. No sort: floors are found among few candidates by rank, else by
//                  a histogram and bit by bit on order-preserving keys; masses are fixed-point
//                  integers, so no sum depends on the order of threads.
// sampling_logprobs  log-softmax of the raw logits at the drawn token, and the n most likely.
//
// Layout   logits, work float32 [R, V]; history uint16 [slots, V]: bit 15 in the prompt, below it
//          occurrences in the output; allowed uint32 [bitmasks, ceil(V / 32)], bit i % 32 of word i / 32
//          is 1 if token i may be drawn; Row below, one a row.
// Grid     R blocks of 512 threads.
// Shared   37 KiB: candidates, their masses, the histogram, reductions.
// Bound by one multiprocessor's read rate: a row is read twice (once if greedy). A row whose
//          candidates do not fit (no top-k and a flat distribution) is read about six times.
// Limits   V < 2^31; top_k above 512 takes the histogram; at most 20 logprobs.
// Source: Salmon et al. 2011 (Philox); Maddison et al. 2014 (Gumbel-max).
#include "common.cuh"

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kLoads = 8;  // of 16 bytes, in flight in a thread
constexpr int kCandidates = 3072;
constexpr int kBins = 1024;
constexpr int kMaxTop = 20;

struct Row {  // 72 bytes
  u64 seed;
  u32 position;
  i32 top_k;  // 0: off
  float temperature, top_p, min_p;  // 0: greedy; 1: off; 0: off
  float repetition, presence, frequency;
  i32 history;      // row of the history, -1: none
  i32 adjusted;     // 1: read work, not logits
  i32 bias_begin, bias_end;  // in the lists of biased tokens
  i32 mask_begin, mask_end;  // in the list of masked tokens
  i32 allowed;               // 1 + row of the bitmasks, 0: every token
  i32 unused;
};

struct Candidate {
  u32 key;
  i32 token;
};

// Larger floats have larger keys; NaN and +infinity come out on top.
__device__ __forceinline__ u32 key_of(float x) {
  const u32 bits = __float_as_uint(x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float value_of(u32 key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

struct Scratch {
  Candidate best[kWarps];
  u64 sums[kWarps];
  u64 masses[kThreads];
  u32 low[kBins], high[kBins];  // of 64-bit sums
  u64 total;
  u32 count, kth, nucleus;
  Candidate candidates[kCandidates];
};

__device__ __forceinline__ bool beats(Candidate a, Candidate b) {
  return a.key > b.key || (a.key == b.key && u32(a.token) < u32(b.token));
}

// The largest key of the block, of the smallest token where keys tie; the same in every thread.
__device__ __forceinline__ Candidate block_best(Candidate mine, Scratch& scratch) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    const Candidate other{__shfl_xor_sync(~0u, mine.key, lane), __shfl_xor_sync(~0u, mine.token, lane)};
    if (beats(other, mine)) mine = other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch.best[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = scratch.best[threadIdx.x % kWarps];
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    const Candidate other{__shfl_xor_sync(~0u, mine.key, lane), __shfl_xor_sync(~0u, mine.token, lane)};
    if (beats(other, mine)) mine = other;
  }
  return mine;
}

__device__ __forceinline__ u64 block_total(u64 mine, Scratch& scratch) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) mine += __shfl_xor_sync(~0u, mine, lane);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch.sums[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = threadIdx.x % 32 < kWarps ? scratch.sums[threadIdx.x % 32] : 0;
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) mine += __shfl_xor_sync(~0u, mine, lane);
  return mine;
}

// Calls visit(token, value) for every token of a row, each thread its own, kLoads in flight.
template <class Visit>
__device__ __forceinline__ void scan(const float* row, i32 vocabulary, Visit visit) {
  const int aligned = (reinterpret_cast<u64>(row) & 15) == 0 ? vocabulary / 4 : 0;
  const float4* quads = reinterpret_cast<const float4*>(row);
  for (int i = threadIdx.x; i < aligned; i += kLoads * kThreads) {
    float4 held[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (i + j * kThreads < aligned) held[j] = quads[i + j * kThreads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int token = (i + j * kThreads) * 4;
      if (i + j * kThreads >= aligned) break;
      visit(token, held[j].x), visit(token + 1, held[j].y), visit(token + 2, held[j].z), visit(token + 3, held[j].w);
    }
  }
  for (int token = aligned * 4 + threadIdx.x; token < vocabulary; token += kThreads) visit(token, row[token]);
}

// The tokens that may still be drawn: a list in shared memory, or the whole row.
struct Field {
  const float* row;
  i32 vocabulary;
  float temperature;
  const Candidate* list;
  int listed;  // -1: the whole row

  __device__ __forceinline__ u32 scaled(float x) const { return key_of(__fdiv_rn(x, temperature)); }
  template <class Visit>  // visit(token, key of the scaled logit)
  __device__ __forceinline__ void each(Visit visit) const {
    if (listed >= 0) {
      for (int i = threadIdx.x; i < listed; i += kThreads) visit(list[i].token, list[i].key);
    } else {
      scan(row, vocabulary, [&](int token, float x) { visit(token, scaled(x)); });
    }
  }
};

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

// The k-th largest of the threads' own raw logits: at least k of the row are at or above it.
__device__ float kth_of_threads(u32 mine, int k) {
  u32 found = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const u32 trial = found | 1u << bit;
    if (__syncthreads_count(mine >= trial) >= k) found = trial;
  }
  return found == 0 ? kNegInf : value_of(found);  // 0: fewer than k threads have a token
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

__device__ __forceinline__ u32 philox_word(u64 seed, u32 position, u32 token) {
  u32 c0 = token >> 2, c1 = position, c2 = 0, c3 = 0, k0 = u32(seed), k1 = u32(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const u32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0, c1 = low1;
    c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  const u32 lane = token & 3;
  return lane == 0 ? c0 : lane == 1 ? c1 : lane == 2 ? c2 : c3;
}

__device__ __noinline__ float gumbel(u64 seed, u32 position, u32 token) {
  const float v = fminf((float(philox_word(seed, position, token)) + 0.5f) * 2.3283064e-10f, 1.f - 5.9604645e-8f);
  return -logf(-log1pf(-v));
}

// The largest raw logit of the block; `own` is this thread's.
__device__ __forceinline__ Candidate find_best(const float* row, i32 vocabulary, Candidate& own, Scratch& scratch) {
  own = Candidate{0, 0x7fffffff};
  scan(row, vocabulary, [&](int token, float x) {
    const u32 key = key_of(x);
    if (key > own.key) own = Candidate{key, token};  // a thread's tokens come in rising order
  });
  return block_best(own, scratch);
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    sampling(const float* logits, const float* work, const Row* rows, u16* history, i32* tokens, i32 vocabulary) {
  __shared__ Scratch scratch;
  const Row& row = rows[blockIdx.x];
  const bool greedy = row.temperature == 0.f;
  const float temperature = greedy ? 1.f : fmaxf(row.temperature, 1e-5f);
  Field field{(row.adjusted ? work : logits) + i64(blockIdx.x) * vocabulary, vocabulary, temperature, nullptr, -1};
  Candidate own;
  const Candidate best = find_best(field.row, vocabulary, own, scratch);
  i32 winner = best.token;
  const bool finite = value_of(best.key) - value_of(best.key) == 0.f;
  if (!greedy && finite) {
    const float largest = __fdiv_rn(value_of(best.key), temperature);
    const i32 top_k = row.top_k < vocabulary ? row.top_k : 0;
    const bool cut_p = row.top_p < 1.f, cut_min = row.min_p > 0.f;
    const float least_scaled = cut_min ? largest + logf(row.min_p) : kNegInf;
    u64 total = 0;
    // A bound that is surely below the floor, and few tokens above it: one look at the row lists them.
    constexpr float kMargin = 1e-3f;  // over the rounding of logarithm and division
    if (top_k > 0 && top_k <= kThreads) {
      const float bound = kth_of_threads(own.key, top_k);
      collect(field, bound == kNegInf ? bound : bound - fabsf(bound) * 1e-6f, scratch);
    } else if (top_k == 0 && cut_p) {
      fill_bins(field, largest, scratch, [&](u32 key) { return mass_of(key, largest); });
      u64 mine = 0, above;
      for (int i = threadIdx.x; i < kBins; i += kThreads) mine += bin_sum(scratch, i);
      total = block_total(mine, scratch);
      const int bin = find_bin(scratch, u64(double(total) * row.top_p), above);
      if (bin < kBins - 1) collect(field, (largest - (bin + 1) * (kRange / kBins) - kMargin) * temperature, scratch);
    } else if (cut_min) {
      collect(field, (least_scaled - kMargin) * temperature, scratch);
    }
    u32 floor = cut_min ? key_of(least_scaled) : 0;
    if (top_k > 0 || cut_p) floor = max(floor, find_floor(field, top_k, row.top_p, total, largest, scratch));
    Candidate fastest{0, 0x7fffffff};
    field.each([&](int token, u32 key) {
      if (key < floor || key <= 0x007fffffu) return;  // -infinity is never drawn
      const Candidate other{key_of(value_of(key) + gumbel(row.seed, row.position, token)), token};
      if (beats(other, fastest)) fastest = other;
    });
    winner = block_best(fastest, scratch).token;
  }
  if (threadIdx.x == 0) {
    tokens[blockIdx.x] = finite ? winner : -1;  // logits that are not finite: no token
    if (row.history >= 0 && finite) {
      u16* seen = history + i64(row.history) * vocabulary + winner;
      if ((*seen & 0x7fff) < 0x7fff) *seen += 1;
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    sampling_adjust(const float* logits, float* work, const Row* rows, const u16* history, const i32* bias_tokens,
                    const float* bias_values, const i32* masked_tokens, const u32* allowed, i32 vocabulary) {
  const Row row = rows[blockIdx.x];
  if (!row.adjusted) return;
  const i64 at = i64(blockIdx.x) * vocabulary;
  const u16* seen = row.history >= 0 ? history + i64(row.history) * vocabulary : nullptr;
  const u32* words = row.allowed > 0 ? allowed + i64(row.allowed - 1) * ((vocabulary + 31) / 32) : nullptr;
  for (int token = threadIdx.x; token < vocabulary; token += kThreads) {
    float x = logits[at + token];
    const u32 state = seen ? seen[token] : 0;
    if (state != 0) {
      const float count = state & 0x7fff;
      if (row.repetition != 1.f) x = x > 0.f ? __fdiv_rn(x, row.repetition) : __fmul_rn(x, row.repetition);
      x = __fsub_rn(x, __fmul_rn(row.frequency, count));
      x = __fsub_rn(x, count > 0.f ? row.presence : 0.f);
    }
    if (words != nullptr && (words[token / 32] >> token % 32 & 1) == 0) x = kNegInf;
    work[at + token] = x;
  }
  __syncthreads();
  for (int i = row.bias_begin + threadIdx.x; i < row.bias_end; i += kThreads) work[at + bias_tokens[i]] += bias_values[i];
  __syncthreads();
  for (int i = row.mask_begin + threadIdx.x; i < row.mask_end; i += kThreads) work[at + masked_tokens[i]] = kNegInf;
}

// out [R, kMaxTop + 1] of (logprob, token): the drawn token, then the `wishes[row]` most likely; < 0: none wished.
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    sampling_logprobs(const float* logits, const i32* wishes, const i32* tokens, float* values, i32* ids,
                      i32 vocabulary) {
  __shared__ Scratch scratch;
  const int wish = wishes[blockIdx.x];
  if (wish < 0) return;
  const float* row = logits + i64(blockIdx.x) * vocabulary;
  Field field{row, vocabulary, 1.f, nullptr, -1};
  Candidate own;
  const float largest = value_of(find_best(row, vocabulary, own, scratch).key);
  float sum = 0.f;
  field.each([&](int, u32 key) { sum += expf(value_of(key) - largest); });
  // In units of 2^-40, so that the order of threads cannot matter.
  const u64 total = block_total(u64(sum * 1099511627776.f), scratch);
  const float normalizer = largest + logf(float(total) * 9.094947e-13f);
  const i64 at = i64(blockIdx.x) * (kMaxTop + 1);
  if (threadIdx.x == 0) {
    const i32 token = tokens[blockIdx.x];
    values[at] = token >= 0 ? row[token] - normalizer : kNegInf;
    ids[at] = token;
  }
  if (wish == 0) return;
  collect(field, kth_of_threads(own.key, min(wish, vocabulary)), scratch);
  Candidate last{0xffffffffu, -1};
  for (int rank = 1; rank <= min(wish, vocabulary); ++rank) {
    Candidate next{0, 0x7fffffff};
    field.each([&](int token, u32 key) {
      const Candidate other{key, token};
      if (beats(last, other) && beats(other, next)) next = other;
    });
    last = block_best(next, scratch);
    if (threadIdx.x == 0) values[at + rank] = value_of(last.key) - normalizer, ids[at + rank] = last.token;
  }
}
