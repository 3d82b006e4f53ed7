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
//          is 1 if token i may be drawn; Row in sampling_row.cuh, one a row.
// Grid     R blocks of 512 threads.
// Shared   37 KiB: candidates, their masses, the histogram, reductions.
// Bound by one multiprocessor's read rate: a row is read twice (once if greedy). A row whose
//          candidates do not fit (no top-k and a flat distribution) is read three to six times.
// Limits   V < 2^31; top_k above 512 takes the histogram; at most 20 logprobs.
// Source: Salmon et al. 2011 (Philox); Maddison et al. 2014 (Gumbel-max).
#include "sampling_floor.cuh"

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
  // In units of 2^-40, so that neither the order of threads matters nor which tokens each has: that
  // depends on the row's alignment.
  u64 mass = 0;
  field.each([&](int, u32 key) { mass += u64(expf(value_of(key) - largest) * 1099511627776.f); });
  const u64 total = block_total(mass, scratch);
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
