"""Choosing CUDA IPC, not getting it, and one pool under two workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import pytest

from kvtransfer.copy_batch import Copy
from kvtransfer.cuda_ipc import CopyStream
from kvtransfer.errors import CudaError, TransportUnavailableError
from kvtransfer.events import Committed, ReceiverEvent
from kvtransfer.host import pid_namespace
from kvtransfer.peer import Peer
from kvtransfer.receiver import Receiver
from kvtransfer.region import CudaExport, DeviceMemory, Region
from kvtransfer.sender import Sender
from tests.integration.kvtransfer.pools import GpuPool, Setup, require_gpus

BOTH = ("cuda_ipc", "zmq_tcp")
FOREIGN = CudaExport(b"\7" * CudaExport.HANDLE_BYTES, 1, pid_namespace())


def make_sender(region: Region, *, allow_fallback: bool) -> Sender:
    return Sender("prefill-0", "s1", [region], transports=BOTH, allow_fallback=allow_fallback)


def with_export(peer: Peer, export: CudaExport | None) -> Peer:
    return dataclasses.replace(peer, regions=(dataclasses.replace(peer.regions[0], export=export),))


def elsewhere(peer: Peer) -> Peer:
    return dataclasses.replace(peer, host_id="elsewhere")


def test_gpu_memory_goes_over_tcp_only_where_that_is_allowed() -> None:
    # Needs no GPU: it is refused before anything is touched.
    region = Region("attention", 1000, 4, "cuda:x", "fp", DeviceMemory(1 << 40, 4000, 0, FOREIGN))
    receiver = Receiver("decode-0", "r1", [region], transports=BOTH, on_event=lambda event: None)
    peer = elsewhere(receiver.peer)
    strict, lenient = make_sender(region, allow_fallback=False), make_sender(region, allow_fallback=True)
    with pytest.raises(TransportUnavailableError, match="cuda_ipc: the receiver is on host 'elsewhere'"):
        strict.connect(peer)
    assert lenient.connect(peer) == "zmq_tcp"
    (refused,) = lenient.refused(peer)
    assert refused.startswith("cuda_ipc: the receiver is on host 'elsewhere'")
    for end in (strict, lenient, receiver):
        end.close()


@pytest.fixture
def pool() -> Iterator[GpuPool]:
    require_gpus(Setup("cuda_ipc", 0, 0))
    made = GpuPool("attention", 1000, 4, "fp", 0)
    made.blocks[:] = [[1], [2], [3], [4]]
    yield made
    made.close()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda peer: with_export(peer, None), "exports no CUDA IPC handle of 'attention'"),
        (lambda peer: with_export(peer, FOREIGN), "from process 1, does not open: cudaError"),
        (
            lambda peer: with_export(peer, dataclasses.replace(FOREIGN, pid_namespace=3)),
            "another PID namespace",
        ),
        (elsewhere, "on host 'elsewhere'"),
    ],
)
def test_a_handle_that_does_not_open_falls_back_only_where_allowed(
    pool: GpuPool, change: Callable[[Peer], Peer], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = GpuPool("attention", 1000, 4, "fp", 0)
    target.blocks[:] = 9
    receiver = Receiver("decode-0", "r1", [target.region], transports=BOTH, on_event=lambda event: None)
    peer = change(receiver.peer)
    strict, lenient = (make_sender(pool.region, allow_fallback=allow) for allow in (False, True))
    with pytest.raises(TransportUnavailableError, match=f"cuda_ipc: .*{reason}"):
        strict.connect(peer)
    assert lenient.connect(peer) == "zmq_tcp"
    assert "does not open" in caplog.text
    receiver.expect("t", 1, [[3]], 5.0)
    transfer = lenient.begin(peer, "t", 1, [[3]], 5.0)
    transfer.push(0, 0, [1])
    transfer.commit(b"")
    assert transfer.done.result(5).transport == "zmq_tcp"
    assert target.blocks[:][:, 0].tolist() == [9, 9, 9, 2]
    for end in (strict, lenient, receiver, target):
        end.close()


@pytest.mark.gpu
def test_in_a_shared_pool_a_block_that_keeps_its_id_is_not_moved(
    pool: GpuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    copy = CopyStream.copy

    def spy(stream: CopyStream, copies: Sequence[Copy]) -> None:
        copied.extend(one.num_bytes for one in copies)
        copy(stream, copies)

    monkeypatch.setattr(CopyStream, "copy", spy)
    events: list[ReceiverEvent] = []
    receiver = Receiver("decode-0", "r1", [pool.region], transports=BOTH, on_event=events.append)
    sender = make_sender(pool.region, allow_fallback=False)
    receiver.expect("t", 1, [[0, 1, 3]], 5.0)
    transfer = sender.begin(receiver.peer, "t", 1, [[0, 1, 3]], 5.0)
    transfer.push(0, 0, [0, 1, 2])
    transfer.commit(b"")
    stats = transfer.done.result(5)
    assert (stats.transport, stats.blocks, stats.bytes) == ("cuda_ipc", 3, 1000)
    assert events[-1] == Committed("t", 1, b"", 3, 3000)
    assert copied == [1000]
    assert pool.blocks[:][:, 0].tolist() == [1, 2, 3, 3]
    sender.close()
    receiver.close()


@pytest.mark.gpu
def test_more_memory_than_there_is_names_the_size() -> None:
    require_gpus(Setup("cuda_ipc", 0, 0))
    with pytest.raises(CudaError, match=f"{1 << 50} bytes on GPU 0: cudaError"):
        GpuPool("attention", 1 << 40, 1 << 10, "fp", 0)
    with pytest.raises(CudaError, match="GPU 99 is asked for"):
        GpuPool("attention", 1, 1, "fp", 99)
