// step_inputs: the inputs of one step, made on the device from what the host says of each row and from the state
// that lives here between steps: every request's block table and the token that it drew last.
//
// step_inputs   one block a row r = {slot, start, tokens, first, pending, decodes, chunk_first, step}: writes for its tokens i
//                 position[first + i] = start + i,  slot_mapping = block * block_size + offset,
//                 token_id = pending ? last_tokens[slot] : host_tokens[first + i],
//               and for the row  context_lens[r] = start + tokens, decode_lens[r] = the same if it decodes, otherwise 0,
//               cu_seqlens_q[r] = chunk_first, and its block table. What cu_seqlens_q gives to attention_prefill is the
//               chunks' tokens: decode rows and empty places have none there.
//               slot < 0: an empty place, whose tokens store nothing (slot -1); it attends to nothing (context 0).
// step_edits    tables[where[i]] = block[i].
// step_outputs  last_tokens[slots[i]] = tokens[i].
// step_mark     *note = rows[0].step, in memory of the host. What was launched before it has ended and can be read: it
//               is launched so that it begins no earlier.
//
// Layout   rows Row[B]; host_tokens int32[T]; tables int32[slots, max_blocks]; block_tables int32[B, max_blocks].
// Grid     B blocks of 256 threads; edits and outputs 256 entries a block. Shared: none.
// Bound by latency: a few microseconds, once a step.
// Limits   block_size = 1 << block_shift.
#include "common.cuh"

struct Row {  // 32 bytes
  i32 slot, start, tokens, first, pending, decodes, chunk_first, step;
};

extern "C" __global__ void __launch_bounds__(256)
    step_inputs(const Row* __restrict__ rows, const i32* __restrict__ host_tokens, const i32* __restrict__ tables,
                const i32* __restrict__ last_tokens, i32* __restrict__ token_ids, i32* __restrict__ positions,
                i32* __restrict__ slot_mapping, i32* __restrict__ context_lens, i32* __restrict__ decode_lens,
                i32* __restrict__ cu_seqlens_q, i32* __restrict__ block_tables, i32 max_blocks, i32 block_shift) {
  const Row row = rows[blockIdx.x];
  const bool empty = row.slot < 0;
  const i32 end = row.start + row.tokens;
  if (threadIdx.x == 0) {
    context_lens[blockIdx.x] = empty ? 0 : end;
    decode_lens[blockIdx.x] = row.decodes ? end : 0;
    cu_seqlens_q[blockIdx.x] = row.chunk_first;
    if (blockIdx.x == gridDim.x - 1) cu_seqlens_q[gridDim.x] = row.chunk_first + (empty || row.decodes ? 0 : row.tokens);
  }
  if (empty) {
    for (int at = row.first + threadIdx.x; at < row.first + row.tokens; at += 256)
      token_ids[at] = 0, positions[at] = 0, slot_mapping[at] = -1;
    return;
  }
  const i32* table = tables + i64(row.slot) * max_blocks;
  i32* batch_table = block_tables + i64(blockIdx.x) * max_blocks;
  for (int i = threadIdx.x; i <= (end - 1) >> block_shift; i += 256) batch_table[i] = table[i];
  for (int i = threadIdx.x; i < row.tokens; i += 256) {
    const i32 position = row.start + i, at = row.first + i;
    positions[at] = position;
    slot_mapping[at] = (table[position >> block_shift] << block_shift) + (position & ((1 << block_shift) - 1));
    token_ids[at] = row.pending ? last_tokens[row.slot] : host_tokens[at];
  }
}

extern "C" __global__ void __launch_bounds__(256)
    step_edits(const i32* __restrict__ where, const i32* __restrict__ block, i32* __restrict__ tables, i32 count) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < count) tables[where[i]] = block[i];
}

extern "C" __global__ void __launch_bounds__(256)
    step_outputs(const i32* __restrict__ slots, const i32* __restrict__ tokens, i32* __restrict__ last_tokens, i32 count) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < count) last_tokens[slots[i]] = tokens[i];
}

extern "C" __global__ void __launch_bounds__(1) step_mark(const Row* __restrict__ rows, volatile i32* note) {
  __threadfence_system();
  *note = rows[0].step;
}
