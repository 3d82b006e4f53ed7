from __future__ import annotations

import pytest

from baton.v1.kv_pb2 import KvPeer
from baton.v1.registry_pb2 import WorkerInfo, WorkerLoad, WorkerRole
from services.common.errors import BatonError, ErrorReason
from services.gateway.registry import Registry, Worker


class Listener:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def on_joined(self, worker: Worker) -> None:
        self.seen.append(("joined", worker.info.incarnation))

    def on_lost(self, worker: Worker) -> None:
        self.seen.append(("lost", worker.info.incarnation))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def info(worker_id: str = "d0", incarnation: str = "a", fingerprint: str = "f", **fields: int) -> WorkerInfo:
    return WorkerInfo(
        worker_id=worker_id,
        incarnation=incarnation,
        role=WorkerRole.WORKER_ROLE_DECODE,
        address="127.0.0.1:1",
        model="m",
        fingerprint=fingerprint,
        num_blocks=10,
        block_size=16,
        context_length=160,
        vocab_size=100,
        kv_peer=KvPeer(worker_id=worker_id, incarnation=incarnation),
        **fields,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return Registry("m", beat_interval_s=1.0, clock=clock)


@pytest.fixture
def listener(registry: Registry) -> Listener:
    made = Listener()
    registry.listen(made)
    return made


def ids(registry: Registry) -> list[str]:
    return [worker.info.worker_id for worker in registry]


def test_three_missed_beats_and_it_is_lost(registry: Registry, listener: Listener, clock: Clock) -> None:
    registry.register(info())
    clock.now = 2.9
    registry.beat("d0", "a", WorkerLoad(free_blocks=7), False)
    clock.now = 5.8
    registry.sweep()
    assert ids(registry) == ["d0"]
    clock.now = 6.0
    registry.sweep()
    assert ids(registry) == []
    assert listener.seen == [("joined", "a"), ("lost", "a")]
    with pytest.raises(BatonError) as caught:
        registry.beat("d0", "a", WorkerLoad(), False)
    assert caught.value.reason is ErrorReason.WORKER_NOT_FOUND


def test_a_new_incarnation_is_another_worker(registry: Registry, listener: Listener) -> None:
    registry.register(info())
    registry.register(info(incarnation="b"))
    assert listener.seen == [("joined", "a"), ("lost", "a"), ("joined", "b")]
    with pytest.raises(BatonError):
        registry.beat("d0", "a", WorkerLoad(), False)
    registry.deregister("d0", "a")
    assert ids(registry) == ["d0"]


def test_registering_again_is_a_beat(registry: Registry, listener: Listener, clock: Clock) -> None:
    registry.register(info())
    clock.now = 2.9
    registry.register(info())
    clock.now = 5.0
    registry.sweep()
    assert listener.seen == [("joined", "a")]


def test_a_different_layout_is_refused(registry: Registry) -> None:
    registry.register(info())
    with pytest.raises(BatonError, match=r"worker\.fingerprint: 'g' differs from 'f'") as caught:
        registry.register(info("d1", fingerprint="g"))
    assert caught.value.reason is ErrorReason.LAYOUT_MISMATCH
    assert ids(registry) == ["d0"]


def test_the_only_worker_may_come_back_with_another_layout(registry: Registry) -> None:
    registry.register(info())
    registry.register(info(incarnation="b", fingerprint="g"))
    assert [worker.info.fingerprint for worker in registry] == ["g"]


@pytest.mark.parametrize(
    "field", ["worker_id", "incarnation", "role", "address", "fingerprint", "num_blocks"]
)
def test_a_missing_field_is_named(registry: Registry, field: str) -> None:
    broken = info()
    broken.ClearField(field)
    with pytest.raises(BatonError, match=f"worker.{field}: must be set"):
        registry.register(broken)


def test_another_model_is_refused(registry: Registry) -> None:
    broken = info()
    broken.model = "other"
    with pytest.raises(BatonError, match="serves 'm', got 'other'"):
        registry.register(broken)


def test_a_beat_resets_what_is_new_and_clears_suspicion(registry: Registry) -> None:
    registry.register(info())
    (worker,) = registry
    registry.suspect(worker)
    worker.new_blocks = 4
    answer = registry.beat("d0", "a", WorkerLoad(free_blocks=3), True)
    assert (worker.new_blocks, worker.is_suspect, worker.is_draining) == (0, False, True)
    assert not answer.receivers  # a decode worker sends nothing


def test_leaving_is_idempotent(registry: Registry, listener: Listener) -> None:
    registry.register(info())
    registry.deregister("d0", "a")
    registry.deregister("d0", "a")
    assert listener.seen == [("joined", "a"), ("lost", "a")]
