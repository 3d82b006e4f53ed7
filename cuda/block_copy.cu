// block_copy: many blocks, or slices of them by head, from one pool to another in one launch.
//
// A block is `segments` runs of `segment_vectors` * 16 bytes, a stride apart on either side: the
// whole block is one run; heads h0..h1 of it are a run for each (layer, K or V). With no ids on a
// side, blocks lie there one after another (gather: dst_ids null; scatter: src_ids null).
//
// Layout   strides in vectors of 16 bytes; ids int32[n] or null; an id < 0 is skipped.
// Grid     (ceil(vectors of a block / 2048), n) blocks of 256 threads, 8 vectors each.
// Shared   none.
// Bound by device memory: every byte read and written once.
// Limits   16-byte alignment; n <= 65535; source and destination blocks are disjoint.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
    block_copy(const Vec16* src, Vec16* dst, const i32* src_ids, const i32* dst_ids, i64 src_block, i64 dst_block,
               i64 src_segment, i64 dst_segment, i32 segments, i32 segment_vectors) {
  const i64 from = src_ids ? i64(src_ids[blockIdx.y]) : i64(blockIdx.y);
  const i64 to = dst_ids ? i64(dst_ids[blockIdx.y]) : i64(blockIdx.y);
  if (from < 0 || to < 0) return;
  const Vec16* source = src + from * src_block;
  Vec16* target = dst + to * dst_block;
  const u32 total = u32(segments) * segment_vectors, first = blockIdx.x * 2048 + threadIdx.x;
  Vec16 held[8];
#pragma unroll
  for (int v = 0; v < 8; ++v) {
    const u32 i = first + v * 256, segment = i / segment_vectors;
    if (i < total) held[v] = load16_stream(source + segment * src_segment + (i - segment * segment_vectors));
  }
#pragma unroll
  for (int v = 0; v < 8; ++v) {
    const u32 i = first + v * 256, segment = i / segment_vectors;
    if (i < total) store16(target + segment * dst_segment + (i - segment * segment_vectors), held[v]);
  }
}
