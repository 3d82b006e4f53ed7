// linear_rows: products of few rows, bound by reading the weights once: out[m][n] = sum_k x[m][k] w[n][k] + bias[n].
//
// Layout   x [M, K], w [N, K], bias [N] or null, 16-bit elements; out [M, N], elements or with -DFLOAT_OUT=1 float32.
// Tile     16 * TILES rows of w by all of K. A block's 8 warps share K in pieces of 64, walk it side by side, and add
//          up through shared memory in fixed order, so a row's bits depend neither on M nor on the other rows.
// Product  mma.sync with w on the 16-high side and x, 8 * GROUPS rows of it, on the other. Which 16 values of k meet in
//          one mma does not matter, as long as both operands agree: a lane takes 8 neighbours of k of its row of w in
//          one 16-byte load and the same 8 of its row of x, and feeds them to two mma. No shuffle, no shared memory.
// Grid     at most two blocks a multiprocessor, each takes tiles blockIdx.x, + gridDim.x, ...; 256 threads.
// Flow     the next piece's loads are under way while one is multiplied, over tile borders too. The first tile's
//          weights are on their way to L2 before the kernel ahead has ended, where the launch allows that.
// Shared   2 * 8 * 16 * TILES * (8 * GROUPS) floats: partial sums of two tiles.
// Bound by device memory: 2 N K bytes.
// Limits   M <= 8 * GROUPS; K a multiple of 8; any N.
#include "async.cuh"

#ifndef TILES
#define TILES 2
#endif
#ifndef GROUPS
#define GROUPS 1
#endif
#ifndef FLOAT_OUT
#define FLOAT_OUT 0
#endif

#if FLOAT_OUT
using Out = float;
#else
using Out = Element;
#endif

constexpr int kWarps = 8;
constexpr int kTileRows = 16 * TILES;
constexpr int kColumns = 8 * GROUPS;  // of the product: rows of x
constexpr int kPiece = 64;            // of K, that a warp takes at once: 128 bytes of each row
constexpr int kAheadBytes = 96 << 10;  // that a block asks L2 for while it waits for the kernel ahead

__device__ __forceinline__ void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

__device__ __forceinline__ Vec16 load_x(const void* address) {  // every block reads it: keep it in L1
  Vec16 v;
  asm volatile("ld.global.ca.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(address)
               : "memory");
  return v;
}

struct Problem {
  const Element* x;
  const Element* w;
  i32 rows, n, k, tiles, pieces;  // pieces of K that one warp takes
};

// A place in a warp's sequence of pieces.
struct Place {
  int tile, piece;

  __device__ __forceinline__ Place next(const Problem& p) const {
    return piece + 1 < p.pieces ? Place{tile, piece + 1} : Place{tile + int(gridDim.x), 0};
  }
};

struct Operands {
  Vec16 w[TILES][2][2];  // tile, upper or lower 8 rows, half of the piece
  Vec16 x[GROUPS][2];
};

__device__ __forceinline__ int column_of(const Place& at, int warp, int lane, int half) {
  return (at.piece * kWarps + warp) * kPiece + half * 32 + lane % 4 * 8;
}

__device__ __forceinline__ void load_w(const Problem& p, const Place& at, int warp, int lane, Operands& to) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int k = column_of(at, warp, lane, half);
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const int row = at.tile * kTileRows + t * 16 + lower * 8 + lane / 4;
        to.w[t][lower][half] = row < p.n && k < p.k ? load16_stream(p.w + i64(row) * p.k + k) : Vec16{0, 0, 0, 0};
      }
  }
}

__device__ __forceinline__ void load_rows(const Problem& p, const Place& at, int warp, int lane, Operands& to) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int k = column_of(at, warp, lane, half);
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
      const int row = g * 8 + lane / 4;
      to.x[g][half] = row < p.rows && k < p.k ? load_x(p.x + i64(row) * p.k + k) : Vec16{0, 0, 0, 0};
    }
  }
}

using Sums = float[TILES][GROUPS][4];

__device__ __forceinline__ void multiply(const Operands& from, Sums& sums) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int part = 0; part < 2; ++part)
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        const u32 a[4] = {from.w[t][0][half].word[2 * part], from.w[t][1][half].word[2 * part],
                          from.w[t][0][half].word[2 * part + 1], from.w[t][1][half].word[2 * part + 1]};
#pragma unroll
        for (int g = 0; g < GROUPS; ++g)
          mma16816<Element>(sums[t][g], a, from.x[g][half].word[2 * part], from.x[g][half].word[2 * part + 1]);
      }
}

extern "C" __global__ void __launch_bounds__(kWarps * 32, 2)
    linear_rows(const Element* x, const Element* w, const Element* bias, Out* out, i32 rows, i32 n, i32 k) {
  __shared__ float partial[2][kWarps][kColumns][kTileRows + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Problem p{x, w, rows, n, k, (n + kTileRows - 1) / kTileRows, (k + kWarps * kPiece - 1) / (kWarps * kPiece)};
  let_next_start();
  Place at{int(blockIdx.x), 0};
  Operands even, odd;
  load_w(p, at, warp, lane, even);
  // More of the first tile on its way to L2: 1 KiB of a row a piece.
  const int ahead = min(p.pieces - 1, kAheadBytes / (kTileRows * 1024)) * kWarps;
  for (int i = threadIdx.x; i < kTileRows * ahead; i += kWarps * 32) {
    const int row = at.tile * kTileRows + i / ahead, column = (kWarps + i % ahead) * kPiece;
    if (row < n && column < k) prefetch_l2(w + i64(row) * k + column);
  }
  wait_for_previous();
  load_rows(p, at, warp, lane, even);
  Sums sums = {};
  int turn = 0;

  // One piece: start the next one's loads, multiply, and at the end of a tile add up.
  const auto step = [&](Operands& now, Operands& soon) {
    const Place next = at.next(p);
    if (next.tile < p.tiles) {
      load_w(p, next, warp, lane, soon);
      load_rows(p, next, warp, lane, soon);
    }
    multiply(now, sums);
    if (next.tile != at.tile) {
      float(&mine)[kWarps][kColumns][kTileRows + 1] = partial[turn];
#pragma unroll
      for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int g = 0; g < GROUPS; ++g)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            mine[warp][g * 8 + lane % 4 * 2 + i % 2][t * 16 + i / 2 * 8 + lane / 4] = sums[t][g][i];
            sums[t][g][i] = 0.f;
          }
      __syncthreads();  // the other half of `partial` is free again once all are here
      for (int i = threadIdx.x; i < kTileRows * rows; i += kWarps * 32) {
        const int row = i / kTileRows, column = at.tile * kTileRows + i % kTileRows;
        if (column >= n) continue;
        float sum = bias == nullptr ? 0.f : to_float(bias[column]);
#pragma unroll
        for (int v = 0; v < kWarps; ++v) sum += mine[v][row][i % kTileRows];
        out[i64(row) * n + column] = from_float<Out>(sum);
      }
      turn ^= 1;
    }
    at = next;
  };
  while (at.tile < p.tiles) {
    step(even, odd);
    if (at.tile >= p.tiles) break;
    step(odd, even);
  }
}
