"""Runs steps on a CUDA device without waiting for it.

launch   slots and edits of block tables ─► one copy to the device ─► step_inputs ─► model ─► draws
         ─► copies to the host, event               (graph: from step_inputs to the logits)
wait     the event, then tokens by request

Steps of decode alone and steps with chunks are padded to the shapes of a ladder, and each shape is a graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from engine.backends.base import KVPool
from engine.backends.cuda.backend import CudaBackend
from engine.backends.cuda.layer_marks import LayerMarks
from engine.backends.cuda.step import CudaStep
from engine.backends.cuda.step_inputs import ROW, DeviceState, StepBuffers
from engine.config import EngineConfig
from engine.grammar.bitmask import num_words
from engine.kv.host_tier import slots_in
from engine.models.transformer import Transformer
from engine.runner.block_store import move_blocks
from engine.runner.cuda.batch import Batch, build_batch, decodes_first, shape_of
from engine.runner.cuda.block_store import PinnedBlockStore
from engine.runner.cuda.foretold import ForetoldValues, foretold
from engine.runner.cuda.graphs import StepGraphs
from engine.runner.cuda.pending import CudaPendingStep
from engine.runner.cuda.sampler import DeviceSampler, Drawn
from engine.runner.cuda.shapes import ShapeLadder, StepShape
from engine.runner.cuda.slots import Slots
from engine.runner.cuda.staging import Staging
from engine.runner.prompt_logprobs import is_wanted
from engine.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS
from engine.step import BlockCopy, ScheduledRow, SchedulerOutput

_PADDING_BYTES = 1024
_TOKEN_BYTES = 16  # its id, and what log-probabilities of prompts need
_SAMPLE_BYTES = 128  # of a sampled row in the staging buffer, its parameters included
_LIST_BYTES = (2 * MAX_LOGIT_BIAS + 2 * MAX_STOP_TOKEN_IDS) * 4  # of a sampled row: logit bias, masked tokens


class CudaRunner:
    """One model over its pool; lives on the engine thread."""

    def __init__(
        self,
        config: EngineConfig,
        eos_token_ids: frozenset[int],
        model: Transformer,
        backend: CudaBackend,
        pool: KVPool,
        context_length: int,
    ) -> None:
        """`pool` belongs to cache group 0, the only one that this family has."""
        device, vocab_size = backend.device, model.lm_head.out_features
        max_rows = config.max_running
        max_tokens = max(config.max_step_tokens, max_rows)
        max_blocks = -(-(context_length + 1) // pool.group.block_size)
        self._model, self._backend, self._pool = model, backend, pool
        host_slots = slots_in(config.swap_bytes, config.host_cache_bytes, (pool.group,))
        self._store = PinnedBlockStore(pool, host_slots.total)
        self._slots = Slots(max_rows, max_blocks)
        self._sampler = DeviceSampler(max_rows, vocab_size, eos_token_ids, device)
        self._state = DeviceState(max_rows, max_blocks, pool.group.block_size, device)
        self._buffers = StepBuffers.create(max_tokens, max_rows + 1, max_blocks, device)
        edits = max_rows * max_blocks * 8
        rows = max_rows * (ROW.itemsize + _SAMPLE_BYTES + _LIST_BYTES + 4 * num_words(vocab_size))
        self._staging = Staging(rows + max_tokens * _TOKEN_BYTES + edits + _PADDING_BYTES, device)
        self._prompts_apart = config.batch_invariant
        backend.reserve_logits(max_rows, vocab_size)
        self._attention = backend.attention(pool)
        self._attention.reserve(max_rows, 0)
        self._generation = self._attention.generation
        self._marks = LayerMarks(len(pool.group.layer_ids))
        self._ladder = ShapeLadder(max_rows, max_tokens)
        self._graphs = StepGraphs(self._run) if config.graphs else None
        torch.cuda.synchronize()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._unprepared = deque[StepShape]()
        if self._graphs is not None:
            self._unprepared.extend(self._ladder.first)
            while self.prepare():
                pass
            self._stream.synchronize()
            self._unprepared.extend(self._ladder.soon)

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Capture the next graph that is likely to be needed; False: none is left."""
        if self._graphs is None or not self._unprepared:
            return False
        shape = self._unprepared.popleft()
        if shape not in self._graphs:
            with torch.cuda.stream(self._stream):
                nothing = build_batch((), 0, (), shape)
                if shape.tells_layers:
                    nothing.rows["step"][0] = self._marks.begin()
                self._staging.send((nothing.rows, nothing.tokens, nothing.wanted))
                self._graphs.run(shape)
        return bool(self._unprepared)

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput) -> CudaPendingStep:
        """Start one step. Modifies the KV of the copied blocks and of the scheduled slots, nothing else.

        A launch that raises leaves nothing running: the blocks of its rows may be given away at once.
        """
        with torch.cuda.stream(self._stream):
            try:
                return self._start(output)
            except BaseException:
                torch.cuda.synchronize()
                raise

    def _start(self, output: SchedulerOutput) -> CudaPendingStep:
        self._slots.forget(output.finished_request_ids)
        move_blocks(output, self._store)
        self._copy(output.copies)
        if not output.rows:
            self._store.join()
            return CudaPendingStep((), None)
        note = self._marks.begin() if output.tells_layers else None
        batch, drawn, values = self._launch(output.rows, note)
        self._store.join()
        step = CudaPendingStep(batch.sampled, drawn, values)
        if note is not None:
            step.layers = self._marks.moments(note, step.is_over)
        return step

    def _launch(
        self, rows: Sequence[ScheduledRow], note: int | None
    ) -> tuple[Batch, Drawn | None, ForetoldValues | None]:
        """`note`: what the step writes behind its layers; None: nobody asks."""
        rows, num_decodes = decodes_first(rows, self._prompts_apart)
        slots, new = self._slots.find(rows)
        for index in new:
            self._sampler.assign(slots[index], rows[index].request)
        shape, asks = shape_of(rows, num_decodes), is_wanted(rows)
        if note is not None:
            shape = replace(shape, tells_layers=True)
        # Log-probabilities of prompts want any number of logits.
        padded = None
        if self._graphs is not None and not asks:
            padded = self._captured(self._graphs, self._ladder.padded(shape))
        shape = padded or shape
        batch = build_batch(rows, num_decodes, slots, shape)
        if note is not None:
            batch.rows["step"][0] = note
        host_rows = self._sampler.rows(batch)
        asked = foretold(rows, batch.sample_tokens) if asks else None
        where, blocks = self._slots.take_edits()
        parts = self._staging.send(
            (
                batch.rows,
                batch.tokens,
                batch.wanted if asked is None else asked.wanted,
                batch.sample_slots,
                np.array(where, np.int32),
                np.array(blocks, np.int32),
                *host_rows.parts,
                *(() if asked is None else asked.parts),
            )
        )
        self._attention.reserve(batch.shape.num_decodes, batch.context_tokens)
        self._state.edit(parts[4].view(torch.int32), parts[5].view(torch.int32))
        wanted = parts[2].view(torch.int32)
        if padded is None:
            logits = self._run(batch.shape, wanted)
        else:
            logits = self._replay(batch, wanted)
        rest = 6 + len(host_rows.parts)
        values = None
        if asked is not None:
            values = ForetoldValues.compute(asked, logits, parts[rest:])
            logits = logits.index_select(0, parts[rest].view(torch.int32))
        if not batch.sampled:
            return batch, None, values
        drawn = self._sampler.draw(logits, host_rows, parts[6:rest])
        self._state.outputs(parts[3].view(torch.int32), drawn.tokens)
        return batch, drawn, values

    def _captured(self, graphs: StepGraphs, shape: StepShape | None) -> StepShape | None:
        """The shape to run as: one that stands in as long as this one is not captured."""
        if shape is None or shape in graphs:
            return shape
        stand_in = graphs.stand_in(shape)
        if stand_in is not None and shape not in self._unprepared:
            self._unprepared.appendleft(shape)
        return stand_in or shape

    def _replay(self, batch: Batch, wanted: torch.Tensor) -> torch.Tensor:
        """Logits float32[R, V] of the tokens `wanted`, by a graph."""
        assert self._graphs is not None
        if self._generation != self._attention.generation:
            self._graphs.drop()
            self._generation = self._attention.generation
        logits = self._graphs.run(batch.shape)
        count = len(batch.sampled)
        if batch.shape.has_chunks or count == batch.num_rows:
            return logits[:count]
        return logits.index_select(0, wanted[:count])

    def _run(self, shape: StepShape, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """A step as `_launch` has sent it.

        Args:
            wanted: int32[R], tokens; None: where a graph finds them, num_wanted of them.
        Returns:
            Logits float32[R, V].
        """
        num_rows, num_tokens = shape.num_rows, shape.num_tokens
        rows, tokens, sent = self._staging.front(
            num_rows * ROW.itemsize, num_tokens * 4, shape.num_wanted * 4
        )
        if wanted is None:
            wanted = sent.view(torch.int32)
        buffers = self._buffers
        self._state.inputs(rows, num_rows, tokens, buffers)
        step = CudaStep(
            num_decodes=shape.num_decodes,
            num_tokens=num_tokens,
            has_chunks=shape.has_chunks,
            positions=buffers.positions[:num_tokens],
            slot_mapping=buffers.slot_mapping[:num_tokens],
            cu_seqlens_q=buffers.cu_seqlens_q[: num_rows + 1],
            context_lens=buffers.context_lens[:num_rows],
            decode_lens=buffers.decode_lens[: shape.num_decodes],
            block_tables=buffers.block_tables[:num_rows],
            rows=rows,
            marks=self._marks if shape.tells_layers else None,
        )
        return self._model.forward(buffers.token_ids[:num_tokens], step, self._pool, wanted)

    def _copy(self, copies: Sequence[BlockCopy]) -> None:
        for run in independent_runs(copies):
            self._backend.block_copy(self._pool, [copy.src for copy in run], [copy.dst for copy in run])


def independent_runs(copies: Sequence[BlockCopy]) -> list[list[BlockCopy]]:
    """Cut a sequence where a copy touches what an earlier one of its run writes, or writes what one reads."""
    runs: list[list[BlockCopy]] = []
    read: set[int] = set()
    written: set[int] = set()
    for copy in copies:
        if not runs or copy.src in written or copy.dst in read or copy.dst in written:
            runs.append([])
            read.clear()
            written.clear()
        runs[-1].append(copy)
        read.add(copy.src)
        written.add(copy.dst)
    return runs
