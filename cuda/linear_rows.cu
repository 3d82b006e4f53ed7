// linear_rows: products of few rows, bound by reading the weights once: out[m][n] = sum_k x[m][k] w[n][k] + bias[n].
//
// Layout   x [M, K], w [N, K], bias [N] or null, 16-bit elements; out [M, N], elements or with -DFLOAT_OUT=1 float32.
// Block    takes `share` neighbouring rows of w, 16 at a time (a tile). Its 8 warps share K in pieces of 64, walk it side
//          by side, and add up through shared memory in fixed order, so a row's bits depend neither on M nor on the
//          other rows.
// Ring     Each warp fills a ring of its own, `stages` pieces of 16 rows, 2 KiB each, by cp.async of whole lines, and runs
//          ahead over tile borders; no warp waits for another but at a tile's end. All of x lies in shared memory.
// Product  mma.sync with w on the 16-high side and x, 8 * GROUPS rows of it, on the other. Which 16 values of k meet in
//          one mma does not matter, as long as both operands agree: a lane takes 8 neighbours of k of its row of w in
//          one 16-byte load and the same 8 of its row of x, and feeds them to two mma.
// Grid     ceil(N / share): as many blocks as fit the device at once, so that none has two shares; 256 threads.
// Overlap  The rings are filled before the kernel ahead has ended, as its blocks make room.
// Shared   8 warps * (stages * 2 KiB + a barrier each + their part of x), and partial sums of two tiles.
// Bound by device memory: 2 N K bytes.
// Limits   M <= 8 * GROUPS; K a multiple of 8; any N; x and four stages within shared memory.
#include "async.cuh"

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
constexpr int kTileRows = 16;
constexpr int kPiece = 64;                          // of K, that a warp takes at once: a line of each row
constexpr int kLineBytes = kPiece * 2;
constexpr int kPieceBytes = kTileRows * kLineBytes;
constexpr int kSumPitch = kTileRows + 1;

__device__ __forceinline__ Vec16 load_shared(u32 address) {
  Vec16 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "r"(address)
               : "memory");
  return v;
}

// A block's rows of w, and the sequence of (tile, piece) in which a warp takes them.
struct Share {
  const Element* w;
  i32 first, end, k;   // rows
  i32 pieces, steps;   // of K that one warp takes; of all tiles
};
struct Step {
  int index, tile, piece, stage;
  u32 parity;

  __device__ __forceinline__ void next(const Share& share, int stages) {
    ++index;
    if (++piece == share.pieces) piece = 0, ++tile;
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// A line of 8 chunks of 16 bytes; neighbouring rows lie in other halves of the banks.
__device__ __forceinline__ u32 place_of(int row, int chunk) {
  return row * kLineBytes + ((chunk ^ (row & 1) << 2) << 4);
}

// Starts a piece on its way: four lines by each of four copies.
__device__ __forceinline__ void fill(const Share& share, const Step& at, u32 ring, u32 full, int warp, int lane) {
  const int column = (at.piece * kWarps + warp) * kPiece + lane % 8 * 8;
  const int row = share.first + at.tile * kTileRows + lane / 8;
  const Element* source = share.w + i64(row) * share.k + column;
  const u32 target = ring + at.stage * kPieceBytes + place_of(lane / 8, lane % 8);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool inside = row + 4 * i < share.end && column < share.k;
    cp_async16(target + i * 4 * kLineBytes, inside ? source + i64(4 * i) * share.k : share.w, inside);
  }
  barrier_arrive_cp_async(full + at.stage * 8);
}

extern "C" __global__ void __launch_bounds__(kWarps * 32, 2)
    linear_rows(const Element* x, const Element* w, const Element* bias, Out* out, i32 rows, i32 n, i32 k,
                i32 share_rows, i32 stages) {
  extern __shared__ __align__(128) u8 memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Share share{w, i32(blockIdx.x) * share_rows, 0, k, (k + kWarps * kPiece - 1) / (kWarps * kPiece), 0};
  share.end = min(share.first + share_rows, n);
  share.steps = (share.end - share.first + kTileRows - 1) / kTileRows * share.pieces;
  // Shared memory: the rings, x, partial sums, barriers.
  const u32 ring = shared_address(memory) + warp * stages * kPieceBytes;
  const u32 x_bytes = share.pieces * rows * kLineBytes;  // of one warp
  const u32 x_start = kWarps * stages * kPieceBytes;
  const u32 x_held = shared_address(memory) + x_start + warp * x_bytes;
  const u32 sums_start = x_start + kWarps * x_bytes;
  float* partial = reinterpret_cast<float*>(memory + sums_start);
  const int sums_floats = kWarps * rows * kSumPitch;  // of a tile
  const u32 full = shared_address(memory) + sums_start + 2 * sums_floats * 4 + warp * (stages + 1) * 8;
  const u32 x_full = full + stages * 8;

  let_next_start();
  if (lane <= stages) barrier_init(full + lane * 8, 32);
  __syncwarp();
  Step to{0, 0, 0, 0, 0};
  for (; to.index < min(stages, share.steps); to.next(share, stages)) fill(share, to, ring, full, warp, lane);
  wait_for_previous();
  // This warp's part of x, in the order in which lanes take it: piece, half of it, row, 4 chunks.
  for (int piece = 0, row = lane / 8; piece < share.pieces; row += 4) {
    for (; row >= rows; row -= rows) ++piece;
    if (piece >= share.pieces) break;
    const int column = (piece * kWarps + warp) * kPiece + lane % 8 * 8;
    const bool inside = column < k;
    cp_async16(x_held + (((piece * 2 + lane % 8 / 4) * rows + row) * 4 + lane % 4) * 16,
               inside ? x + i64(row) * k + column : x, inside);
  }
  barrier_arrive_cp_async(x_full);
  barrier_wait(x_full, 0);

  float sums[GROUPS][4] = {};
  int turn = 0;
  for (Step at{0, 0, 0, 0, 0}; at.index < share.steps;) {
    barrier_wait(full + at.stage * 8, at.parity);
    Vec16 a[2][2], b[2][GROUPS];  // half of the piece; upper or lower 8 rows
    const u32 piece = ring + at.stage * kPieceBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower)
        a[half][lower] = load_shared(piece + place_of(lower * 8 + lane / 4, half * 4 + lane % 4));
#pragma unroll
      for (int g = 0; g < GROUPS; ++g) {
        const int row = g * 8 + lane / 4;
        const u32 source = x_held + (((at.piece * 2 + half) * rows + row) * 4 + lane % 4) * 16;
        b[half][g] = row < rows ? load_shared(source) : Vec16{0, 0, 0, 0};
      }
    }
    __syncwarp();  // all lanes have read the stage
    if (to.index < share.steps) {
      fill(share, to, ring, full, warp, lane);
      to.next(share, stages);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const u32 rows_of_w[4] = {a[half][0].word[2 * part], a[half][1].word[2 * part],
                                  a[half][0].word[2 * part + 1], a[half][1].word[2 * part + 1]};
#pragma unroll
        for (int g = 0; g < GROUPS; ++g)
          mma16816<Element>(sums[g], rows_of_w, b[half][g].word[2 * part], b[half][g].word[2 * part + 1]);
      }
    const int tile = at.tile;
    at.next(share, stages);
    if (at.tile == tile) continue;
    // The tile's end: add up over the warps.
    float* mine = partial + turn * sums_floats;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = g * 8 + lane % 4 * 2 + i % 2;
        if (row < rows) mine[(warp * rows + row) * kSumPitch + i / 2 * 8 + lane / 4] = sums[g][i];
        sums[g][i] = 0.f;
      }
    __syncthreads();  // the other half of `partial` is free again once all are here
    for (int i = threadIdx.x; i < kTileRows * rows; i += kWarps * 32) {
      const int row = i / kTileRows, column = share.first + tile * kTileRows + i % kTileRows;
      if (column >= share.end) continue;
      float sum = bias == nullptr ? 0.f : to_float(bias[column]);
#pragma unroll
      for (int v = 0; v < kWarps; ++v) sum += mine[(v * rows + row) * kSumPitch + i % kTileRows];
      out[i64(row) * n + column] = from_float<Out>(sum);
    }
    turn ^= 1;
  }
}
