from __future__ import annotations

from baton.v1.registry_pb2 import WorkerInfo, WorkerLoad
from services.gateway.registry import Worker
from services.gateway.selection import Hold


def counts(worker: Worker) -> tuple[int, int, int, int]:
    return worker.held_blocks, worker.new_blocks, worker.held_tokens, worker.new_tokens


def test_a_share_is_counted_at_selection_and_given_back_once() -> None:
    worker = Worker(WorkerInfo(num_blocks=10), now=0.0)
    hold = Hold(worker, (), blocks=3, tokens=40)
    assert counts(worker) == (3, 3, 40, 40)
    hold.release()
    hold.release()
    assert counts(worker) == (0, 0, 0, 0)


def test_a_share_that_a_report_has_seen_is_no_longer_new() -> None:
    worker = Worker(WorkerInfo(num_blocks=10), now=0.0)
    hold = Hold(worker, (), blocks=3)
    worker.load = WorkerLoad(free_blocks=7)
    worker.new_blocks = 0
    later = Hold(worker, (), blocks=2)
    hold.release()
    assert counts(worker)[:2] == (2, 2)
    later.release()
    assert counts(worker)[:2] == (0, 0)
