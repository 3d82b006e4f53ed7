// attention_decode: attention of 1 to 8 new tokens a request over a paged KV pool.
//
// Computes  out[b,j,h] = softmax(cap(scale * q[b,j,h] . K[b,:,h/g])) V[b,:,h/g], where new
// token j of request b sits at position context_lens[b] - Q + j, sees itself and what is
// before it (at most `window` positions), and `sinks[h]` may add exp(sink) to the denominator.
//
// Layout   q, out  [B, Q, H, D]; pool [blocks, layers, 2, H_kv, block_size, D], of which `kv`
//          points at this layer in block 0; block_tables int32 [B, max_blocks]; g = H / H_kv.
// Rows     The Q*g query rows of one KV head fill a tensor-core tile; row = j*g + h%g.
//          -DROWS is Q*g rounded up to 4, 8, 16, 32, 64 or 128. Up to 8 rows the product is
//          keys x rows (K, V^T are the 16-high operand), so no half of a tile is wasted.
// Work     A request is cut at multiples of a split size that depends on its own length
//          alone (or, if the plan is told to spread, on the batch too while that leaves blocks idle).
//          One (split, KV head) is a unit. attention_decode_plan, one block, once a
//          step, lists the splits and cuts the list of units (by request, head, split) into
//          `gridDim.x` runs of equal cost; every layer reuses that. Splits are folded first to
//          last wherever they are, so a request's result is the same bits whatever else is in the batch.
// Block    A producer warp fills a ring of STAGES tiles of TILE keys (K and V), and slots with
//          each unit's description and queries, running ahead over unit borders; 4 (ROWS 128: 8)
//          consumer warps: tile t of a unit goes to key group t % kKeyGroups, each with its own
//          online softmax. At a unit's end the groups merge through shared memory in fixed order.
//          A request and head that lies in one run is summed in that block. Of one that crosses
//          runs, each block leaves float32 partials and says so; the block with its last split folds
//          them at its end (each block waits for earlier ones only, and folds at most one request).
// Overlap  Launched to overlap the kernel before it (rope_kv_store), it fills a part of its ring with keys
//          that are older than this step, and waits before the first new key, query or store.
// Fill     -DTMA=1: one box of the tensor copy engine per 64 columns of a block, swizzled;
//          else cp.async of 16 bytes with the same swizzle.
// SM       -DBLOCKS blocks share a multiprocessor; one loads while another ends a unit.
// Shared   ring STAGES * TILE * D' * 4 bytes (D' = D rounded up to 64), query slots, merge buffer
//          kKeyGroups * ROWS * (D + 8) * 4, sum ROWS * D * 4, barriers: kSharedBytes in attention_decode_shape.cuh.
// Bound by device memory: each K and V byte is read once.
// Limits   D in {64, 96, 128, 256}; block_size a power of two >= 16; Q*g <= 128; 16-bit elements.
#include "attention_decode_consume.cuh"
#include "attention_decode_plan.cuh"
#include "attention_decode_produce.cuh"

// Grid: as many blocks as the plan has runs. Block: kThreads.
extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    attention_decode(const __grid_constant__ Params p, const __grid_constant__ TensorMap map) {
  extern __shared__ __align__(1024) u8 memory[];
  let_next_start();
  const Shared shared(memory);
  if (threadIdx.x == 0) shared.init();
  __syncthreads();
  if (threadIdx.x >= kConsumerThreads) {
    produce(p, &map, shared, threadIdx.x % 32);
  } else {
    consume(p, shared, threadIdx.x);
  }
}
