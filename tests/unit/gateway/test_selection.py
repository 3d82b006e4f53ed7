from __future__ import annotations

import pytest

from baton.v1.kv_pb2 import KvPeer
from baton.v1.registry_pb2 import WorkerInfo, WorkerLoad, WorkerRole
from services.gateway.prefix_index import PromptBlocks
from services.gateway.registry import Registry, Worker
from services.gateway.selection import Reserved, Selector

ROLES = {
    "p": WorkerRole.WORKER_ROLE_PREFILL,
    "d": WorkerRole.WORKER_ROLE_DECODE,
    "b": WorkerRole.WORKER_ROLE_BOTH,
}
PROMPT = PromptBlocks(list(range(100)), "")


class Cluster:
    """Workers named by role and number: "p0", "d1", "b0"."""

    def __init__(self, *names: str, local_prefill_tokens: int = 0) -> None:
        self.registry = Registry("m", 1.0, lambda: 0.0)
        self.selector = Selector(self.registry, 256, local_prefill_tokens=local_prefill_tokens)
        self.workers = {name: self.registry.register(_info(name)) for name in names}

    def prefill_for(self, name: str | None, cached: int = 0, refuse: str = "") -> str | None:
        reserved = Reserved(self.workers[name], cached) if name else Reserved()
        refused = [self.workers[refuse].key] if refuse else []
        picked = self.selector.pick_prefill(PROMPT, reserved, (), refused)
        return picked and picked[0].info.worker_id

    def decode(self) -> Worker:
        picked = self.selector.pick_decode(PROMPT, 64, (), ())
        assert picked is not None
        return picked[0]

    def report(self, name: str, *, draining: bool = False, **load: int) -> None:
        fields = {"free_blocks": 100} | load
        self.registry.beat(*self.workers[name].key, WorkerLoad(**fields), draining)


def _info(name: str) -> WorkerInfo:
    return WorkerInfo(
        worker_id=name,
        incarnation="1",
        role=ROLES[name[0]],
        address="127.0.0.1:1",
        model="m",
        fingerprint="f",
        num_blocks=100,
        block_size=16,
        context_length=1600,
        vocab_size=1000,
        kv_peer=KvPeer(worker_id=name) if name[0] != "p" else None,
    )


def test_co_located_workers_compute_their_own_prompts() -> None:
    cluster = Cluster("b0", "b1")
    for name in ("b0", "b1"):
        assert [cluster.prefill_for(name) for _ in range(3)] == [name] * 3


def test_a_co_located_worker_that_refuses_has_no_stand_in_of_its_kind() -> None:
    assert Cluster("b0", "b1").prefill_for("b0", refuse="b0") is None
    assert Cluster("b0", "b1", "p0").prefill_for("b0", refuse="b0") == "p0"


def test_prefill_workers_share_the_prompts_of_co_located_ones_by_queue() -> None:
    cluster = Cluster("b0", "p0")
    cluster.report("b0", pending_tokens=5000)
    assert cluster.prefill_for("b0") == "p0"
    cluster.report("b0", pending_tokens=0)
    cluster.report("p0", pending_tokens=5000)
    assert cluster.prefill_for("b0") == "b0"


def test_what_the_reservation_holds_already_counts_for_computing_there() -> None:
    for cached, chosen in ((0, "p0"), (64, "b0")):
        cluster = Cluster("b0", "p0")
        cluster.report("b0", pending_tokens=300)
        assert cluster.prefill_for("b0", cached) == chosen


def test_a_co_located_worker_computes_for_decode_workers_and_alone() -> None:
    cluster = Cluster("b0", "d0")
    assert cluster.prefill_for("d0") == "b0"
    assert cluster.prefill_for(None) == "b0"


def test_a_decode_worker_computes_short_prompts_itself() -> None:
    cluster = Cluster("p0", "d0", local_prefill_tokens=40)
    assert cluster.prefill_for("d0") == "p0"
    assert cluster.prefill_for("d0", cached=48) == "p0"
    assert cluster.prefill_for("d0", cached=64) == "d0"
    assert cluster.prefill_for("d0", cached=64, refuse="d0") == "p0"
    assert cluster.prefill_for(None) == "p0"
    assert Cluster("p0", "d0").prefill_for("d0", cached=96) == "p0"


def test_a_worker_that_drains_computes_what_it_reserved_and_takes_nothing_new() -> None:
    cluster = Cluster("b0", "b1")
    cluster.report("b0", draining=True)
    assert cluster.prefill_for("b0") == "b0"
    assert cluster.prefill_for(None) == "b1"
    assert cluster.decode() is cluster.workers["b1"]


def test_prompts_that_wait_draw_requests_to_the_other_pair() -> None:
    cluster = Cluster("b0", "b1")
    cluster.report("b0", pending_tokens=500)
    assert cluster.decode() is cluster.workers["b1"]


def test_a_queue_that_all_share_does_not_count() -> None:
    cluster = Cluster("p0", "d0", "d1")
    cluster.report("p0", pending_tokens=100_000)
    cluster.report("d0", free_blocks=90)
    assert cluster.decode() is cluster.workers["d1"]


@pytest.mark.parametrize(
    ("sender", "receivers"),
    [("p0", {"d0", "b0", "b1"}), ("b0", {"d0"}), ("d0", set())],
)
def test_workers_hear_of_those_that_they_may_send_to(sender: str, receivers: set[str]) -> None:
    cluster = Cluster("p0", "d0", "b0", "b1")
    known = cluster.registry.receivers(cluster.workers[sender])
    assert {peer.worker_id for peer in known} == receivers
