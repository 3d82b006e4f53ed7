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

// Two rows of scores, as wgmma leaves them with a thread, and their running maximum and sum.
struct Rows {
    int position0, position1;
    float m0, m1;  // of unscaled scores
    float l0, l1;  // this thread's part
};

struct Scale {
    float score;  // log2(e) * scale, or log2(e) * cap where the scores are capped
    float cap;    // 2 log2(e) scale / cap
};

// Turns the scores of tile n into probabilities, in place. The rows' old sums and outputs are to be multiplied by alpha.
template <bool kMasked, int kScores>
__device__ __forceinline__ void softmax(float (&s)[kScores], Rows& rows, Scale scale, int column, int window, float& alpha0,
                                        float& alpha1) {
    if constexpr (SOFT_CAP) {
#pragma unroll
        for (int i = 0; i < kScores; ++i)  // tanh x = 1 - 2 / (e^2x + 1)
            s[i] = 1.0f - 2.0f * reciprocal(exp2_fast(s[i] * scale.cap) + 1.0f);
    }
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
    float a0 = rows.m0, b0 = s[1], a1 = rows.m1, b1 = s[3];
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
        a0 = fmaxf(a0, s[i]);
        b0 = fmaxf(b0, s[i + 1]);
        a1 = fmaxf(a1, s[i + 2]);
        b1 = fmaxf(b1, s[i + 3]);
    }
    a0 = fmaxf(a0, b0);
    a1 = fmaxf(a1, b1);
    a0 = fmaxf(a0, __shfl_xor_sync(~0u, a0, 1));
    a1 = fmaxf(a1, __shfl_xor_sync(~0u, a1, 1));
    a0 = fmaxf(a0, __shfl_xor_sync(~0u, a0, 2));
    a1 = fmaxf(a1, __shfl_xor_sync(~0u, a1, 2));
    float top0 = a0 * scale.score, top1 = a1 * scale.score;
    if constexpr (kMasked) {  // a row that has seen no key yet
        top0 = a0 == kNegInf ? 0.0f : top0;
        top1 = a1 == kNegInf ? 0.0f : top1;
    }
    alpha0 = exp2_fast(fmaf(rows.m0, scale.score, -top0));
    alpha1 = exp2_fast(fmaf(rows.m1, scale.score, -top1));
    rows.m0 = a0;
    rows.m1 = a1;
    float c0 = 0.0f, c1 = 0.0f;
    rows.l0 *= alpha0;
    rows.l1 *= alpha1;
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
        s[i] = exp2_fast(fmaf(s[i], scale.score, -top0));
        s[i + 1] = exp2_fast(fmaf(s[i + 1], scale.score, -top0));
        s[i + 2] = exp2_fast(fmaf(s[i + 2], scale.score, -top1));
        s[i + 3] = exp2_fast(fmaf(s[i + 3], scale.score, -top1));
        rows.l0 += s[i];
        c0 += s[i + 1];
        rows.l1 += s[i + 2];
        c1 += s[i + 3];
    }
    rows.l0 += c0;
    rows.l1 += c1;
}

// After the last tile: what the rows' outputs are to be multiplied by.
__device__ __forceinline__ void finish(const Rows& rows, Scale scale, const float* sinks, int head0, int head1, float& scale0,
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
        const float top0 = rows.m0 * scale.score, top1 = rows.m1 * scale.score;
        const float all0 = fmaxf(top0, sink0), all1 = fmaxf(top1, sink1);
        scale0 = exp2_fast(top0 - all0);
        scale1 = exp2_fast(top1 - all1);
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
