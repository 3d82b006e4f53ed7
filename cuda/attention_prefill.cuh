// What the two attention_prefill kernels share: their options, the online softmax over one tile, and the store.
// Both keep scores and outputs as the tensor cores leave them with a thread: element i of an array belongs to column
// i / 4 * 8 + lane % 4 * 2 + i % 2 of row lane / 4, or of row lane / 4 + 8 where i % 4 >= 2.
// Source: Dao 2023, "FlashAttention-2", algorithm 1 (the online softmax).
#pragma once

#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#ifndef BLOCK_SIZE  // tokens in a KV block
#define BLOCK_SIZE 64
#endif
#ifndef PACK
#define PACK 4
#endif
#ifndef WINDOW  // 1: a sliding window
#define WINDOW 0
#endif
#ifndef SOFT_CAP
#define SOFT_CAP 0
#endif
#ifndef SINKS
#define SINKS 0
#endif

__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two rows of scores, as the tensor cores leave them with a thread, and their running state.
// Probabilities are taken relative to `top`, the row's maximum when it last moved: it moves only when a tile exceeds it by
// more than kSlack, so that most tiles need no exchange between threads and no rescaling. Whether a row's top moves
// depends on that row alone.
struct Rows {
    int position0, position1;
    float top0, top1;      // in units of log2; -inf before the first key
    float limit0, limit1;  // the largest score that top still serves, unscaled; -inf before the first key
    float l0, l1;          // this thread's part of the sums
};

__device__ __forceinline__ Rows new_rows(int position0, int position1) {
    return {position0, position1, kNegInf, kNegInf, kNegInf, kNegInf, 0.0f, 0.0f};
}

struct Scale {
    float score;  // log2(e) * scale, or log2(e) * cap where the scores are capped
    float slack;  // kSlack in unscaled scores
    float cap;    // 2 log2(e) scale / cap
};

constexpr float kSlack = DTYPE == 0 ? 60.0f : 13.0f;  // in units of log2: probabilities must fit the element type
constexpr float kLargest = DTYPE == 0 ? 576460752303423488.0f : 4096.0f;  // 2^(kSlack - 1): sums past it need a look

__device__ __forceinline__ Scale new_scale(float scale, float soft_cap) {
    const float score = (SOFT_CAP ? soft_cap : scale) * kLog2e;
    return {score, kSlack / score, SOFT_CAP ? 2.0f * kLog2e * scale / soft_cap : 0.0f};
}

// Moves one row's top to `highest` if that is past its limit. Returns what its sum and outputs are to be multiplied by.
__device__ __forceinline__ float move_top(float highest, Scale scale, float& top, float& limit) {
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
    const bool move = highest > limit;
    const float new_top = highest * scale.score;
    const float alpha = !move ? 1.0f : limit == kNegInf ? 0.0f : exp2_fast(top - new_top);
    top = move ? new_top : top;
    limit = move ? highest + scale.slack : limit;
    return alpha;
}

template <int kScores>
__device__ __forceinline__ void cap_scores(float (&s)[kScores], Scale scale) {
    if constexpr (SOFT_CAP) {
#pragma unroll
        for (int i = 0; i < kScores; ++i)  // tanh x = 1 - 2 / (e^2x + 1)
            s[i] = 1.0f - 2.0f * reciprocal(exp2_fast(s[i] * scale.cap) + 1.0f);
    }
}

template <int kScores>
__device__ __forceinline__ void exponentiate(float (&s)[kScores], float top0, float top1, Scale scale) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) s[i] = exp2_fast(fmaf(s[i], scale.score, i % 4 < 2 ? -top0 : -top1));
}

// This thread's part of the two rows' sums.
template <int kScores>
__device__ __forceinline__ void add_up(const float (&s)[kScores], float& l0, float& l1) {
    float sum[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = s[i];
#pragma unroll
    for (int i = 8; i < kScores; ++i) sum[i % 8] += s[i];
    l0 = (sum[0] + sum[1]) + (sum[4] + sum[5]);
    l1 = (sum[2] + sum[3]) + (sum[6] + sum[7]);
}

// Turns the scores of one tile into probabilities, in place, and adds them to the rows' sums. Returns whether, in any row
// of the warp, outputs so far are to be multiplied by alpha.
template <bool kMasked, int kScores>
__device__ __forceinline__ bool softmax(float (&s)[kScores], Rows& rows, Scale scale, int column, int window, float& alpha0,
                                        float& alpha1) {
    cap_scores(s, scale);
    if constexpr (kMasked) {
        const int upto0 = rows.position0 - column, upto1 = rows.position1 - column;
        const int from0 = upto0 - window, from1 = upto1 - window;
#pragma unroll
        for (int i = 0; i < kScores; ++i) {
            const int c = i / 4 * 8 + i % 2;
            const bool low = i % 4 < 2;
            if (c > (low ? upto0 : upto1)) s[i] = kNegInf;
            if (WINDOW && c <= (low ? from0 : from1)) s[i] = kNegInf;
        }
    }
    float high[8];  // four independent chains a row
#pragma unroll
    for (int i = 0; i < 8; ++i) high[i] = fmaxf(s[i], s[i + 8]);
#pragma unroll
    for (int i = 16; i < kScores; ++i) high[i % 8] = fmaxf(high[i % 8], s[i]);
    const float a0 = fmaxf(fmaxf(high[0], high[1]), fmaxf(high[4], high[5]));
    const float a1 = fmaxf(fmaxf(high[2], high[3]), fmaxf(high[6], high[7]));
    const bool moved = __any_sync(~0u, a0 > rows.limit0 || a1 > rows.limit1);
    if (moved) {
        alpha0 = move_top(a0, scale, rows.top0, rows.limit0);
        alpha1 = move_top(a1, scale, rows.top1, rows.limit1);
        rows.l0 *= alpha0;
        rows.l1 *= alpha1;
    }
    exponentiate(s, rows.top0 == kNegInf ? 0.0f : rows.top0, rows.top1 == kNegInf ? 0.0f : rows.top1, scale);
    float l0, l1;
    add_up(s, l0, l1);
    rows.l0 += l0;
    rows.l1 += l1;
    return moved;
}

template <int kScores>
__device__ __forceinline__ void pack(const float (&s)[kScores], u32 (&p)[kScores / 2]) {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) p[i] = pack2<Element>(s[2 * i], s[2 * i + 1]);
}

template <int kOuts>
__device__ __forceinline__ void rescale(float (&o)[kOuts], float alpha0, float alpha1) {
#pragma unroll
    for (int i = 0; i < kOuts; i += 4) {
        o[i] *= alpha0;
        o[i + 1] *= alpha0;
        o[i + 2] *= alpha1;
        o[i + 3] *= alpha1;
    }
}

// After the last tile: what the rows' outputs are to be multiplied by.
__device__ __forceinline__ void finish(const Rows& rows, const float* sinks, int head0, int head1, float& scale0,
                                       float& scale1) {
    float l0 = rows.l0, l1 = rows.l1;
    l0 += __shfl_xor_sync(~0u, l0, 1);
    l1 += __shfl_xor_sync(~0u, l1, 1);
    l0 += __shfl_xor_sync(~0u, l0, 2);
    l1 += __shfl_xor_sync(~0u, l1, 2);
    scale0 = 1.0f;
    scale1 = 1.0f;
    if constexpr (SINKS) {  // one more score, without a value
        const float sink0 = sinks[head0] * kLog2e, sink1 = sinks[head1] * kLog2e;
        const float all0 = fmaxf(rows.top0, sink0), all1 = fmaxf(rows.top1, sink1);
        scale0 = exp2_fast(rows.top0 - all0);
        scale1 = exp2_fast(rows.top1 - all1);
        l0 = l0 * scale0 + exp2_fast(sink0 - all0);
        l1 = l1 * scale1 + exp2_fast(sink1 - all1);
    }
    scale0 /= l0;
    scale1 /= l1;
}

// Scales, rounds and stores two rows of outputs; null rows are left out. Quads first trade pieces (a 4 x 4 transpose),
// so that each thread stores 16 bytes.
template <int kOuts>
__device__ __forceinline__ void store_rows(const float (&o)[kOuts], float scale0, float scale1, Element* row0, Element* row1,
                                           int quad) {
#pragma unroll
    for (int c = 0; c < kOuts / 16; ++c) {
        u32 mine0[4], mine1[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int i = (c * 4 + j) * 4;
            mine0[j] = pack2<Element>(o[i] * scale0, o[i + 1] * scale0);
            mine1[j] = pack2<Element>(o[i + 2] * scale1, o[i + 3] * scale1);
        }
#pragma unroll
        for (int bit = 1; bit <= 2; bit *= 2) {
            const bool odd = quad & bit;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (j & bit) continue;
                const u32 send0 = odd ? mine0[j] : mine0[j | bit], send1 = odd ? mine1[j] : mine1[j | bit];
                const u32 got0 = __shfl_xor_sync(~0u, send0, bit), got1 = __shfl_xor_sync(~0u, send1, bit);
                mine0[j] = odd ? got0 : mine0[j];
                mine1[j] = odd ? got1 : mine1[j];
                mine0[j | bit] = odd ? mine0[j | bit] : got0;
                mine1[j | bit] = odd ? mine1[j | bit] : got1;
            }
        }
        const int element = c * 32 + quad * 8;
        if (row0) store16(row0 + element, Vec16{{mine0[0], mine0[1], mine0[2], mine0[3]}});
        if (row1) store16(row1 + element, Vec16{{mine1[0], mine1[1], mine1[2], mine1[3]}});
    }
}
