"""The way of a transfer's blocks straight into the receiver's memory, on the sender's copy threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from kvtransfer.copier import Copier, WriteGate
from kvtransfer.runs import PushedRun


class DirectWrites:
    """Writes runs through a gate; methods from any thread, callbacks on a copy thread.

    Args:
        block_ids: the receiver's, one list a group.
        placed: told a run that is in place, and the bytes that were moved for it.
        come_too_late: the gate was closed, or its deadline has passed; not all of a run was written.
        failed: told what `PushedRun.ready` or a copy raised.
    """

    def __init__(
        self,
        gate: WriteGate,
        copier: Copier,
        block_ids: Sequence[Sequence[int]],
        placed: Callable[[PushedRun, int], object],
        come_too_late: Callable[[], object],
        failed: Callable[[Exception], object],
    ) -> None:
        self._gate = gate
        self._copier = copier
        self._block_ids = block_ids
        self._placed = placed
        self._come_too_late = come_too_late
        self._failed = failed

    def submit(self, run: PushedRun) -> None:
        """Let the copy threads write a run, when it is computed."""
        for piece in run.cut(self._gate.piece_blocks(run.num_blocks)):
            self._copier.submit(partial(self._copy, piece))

    def _copy(self, run: PushedRun) -> None:
        try:
            num_bytes = self._write(run)
        except Exception as error:
            self._failed(error)
            return
        if num_bytes is None:
            self._come_too_late()
        else:
            self._placed(run, num_bytes)

    def _write(self, run: PushedRun) -> int | None:
        """Write one run; returns the bytes moved, or None: it came too late."""
        if run.ready is not None:
            run.ready()
        num_bytes = 0
        targets = self._block_ids[run.group]
        for batch in run.cut(self._gate.batch_blocks):
            first = batch.first_index
            batch_targets = targets[first : first + batch.num_blocks]
            moved = self._gate.write(run.group, batch_targets, batch.source_block_ids, run.part)
            if moved is None:
                return None
            num_bytes += moved
        return num_bytes
