// embedding: out[t] = table[token_ids[t]]; an id outside the table gives zeros.
//
// Layout   token_ids int32[T], table [V, E], out [T, E], 16-bit elements.
// Grid     T blocks of 256 threads, a vector of 8 elements at a time.
// Shared   none.
// Bound by device memory: a row read and written once.
// Limits   E a multiple of 8.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
    embedding(const i32* __restrict__ token_ids, const Element* __restrict__ table, Element* __restrict__ out,
              i32 vocabulary, i32 width) {
  const i32 id = token_ids[blockIdx.x];
  const bool known = id >= 0 && id < vocabulary;
  const Element* row = table + i64(known ? id : 0) * width;
  Element* target = out + i64(blockIdx.x) * width;
#pragma unroll 2
  for (int i = threadIdx.x * 8; i < width; i += 256 * 8)
    store16(target + i, known ? load16(row + i) : Vec16{0, 0, 0, 0});
}
