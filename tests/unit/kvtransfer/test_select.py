from __future__ import annotations

from dataclasses import replace

import pytest

from kvtransfer.errors import FingerprintMismatchError, InvalidPeerError, TransportUnavailableError
from kvtransfer.peer import Peer
from kvtransfer.region import CudaExport, RegionFacts, check_same_layout
from kvtransfer.select import select_transports

PRIVATE = RegionFacts("attention", 100, 10, "cpu", "fp")
SHARED = replace(PRIVATE, shm_name="baton-pool-1-aa")
CUDA = replace(PRIVATE, device="cuda:GPU-1", export=CudaExport(bytes(64), 7, 8))
ALL = ("cuda_ipc", "shared_memory", "zmq_tcp", "fake")

SENDER = Peer("prefill-0", "s1", "host-a", "", ALL, (PRIVATE,))
RECEIVER = Peer("decode-0", "r1", "host-a", "tcp://10.0.0.1:5555", ALL, (SHARED,))


@pytest.mark.parametrize(
    ("sender", "receiver", "expected"),
    [
        (SENDER, RECEIVER, ("shared_memory", "zmq_tcp")),
        (replace(SENDER, transports=("zmq_tcp", "shared_memory")), RECEIVER, ("zmq_tcp", "shared_memory")),
        (SENDER, replace(RECEIVER, transports=("zmq_tcp",)), ("zmq_tcp",)),
        (SENDER, replace(RECEIVER, host_id="host-b"), ("zmq_tcp",)),
        (SENDER, replace(RECEIVER, regions=(PRIVATE,)), ("zmq_tcp",)),
        (SENDER, replace(RECEIVER, regions=(SHARED, PRIVATE)), ("zmq_tcp",)),
        (SENDER, replace(RECEIVER, endpoint="fake://1"), ("fake",)),
        (SENDER, replace(RECEIVER, regions=(CUDA,)), ("zmq_tcp",)),
        (replace(SENDER, regions=(CUDA,)), RECEIVER, ("zmq_tcp",)),
        (replace(SENDER, regions=(CUDA,)), replace(RECEIVER, regions=(CUDA,)), ("cuda_ipc", "zmq_tcp")),
        # On another host it fails to open, so that TCP is a fallback and not a choice.
        (
            replace(SENDER, regions=(CUDA,)),
            replace(RECEIVER, regions=(CUDA,), host_id="host-b"),
            ("cuda_ipc", "zmq_tcp"),
        ),
    ],
)
def test_fitting_transports_in_the_senders_order(
    sender: Peer, receiver: Peer, expected: tuple[str, ...]
) -> None:
    assert select_transports(sender, receiver) == expected


@pytest.mark.parametrize(
    ("sender", "receiver", "reason"),
    [
        (replace(SENDER, transports=()), RECEIVER, "none configured"),
        (replace(SENDER, transports=("pigeon",)), RECEIVER, "pigeon: unknown; known are cuda_ipc"),
        (
            replace(SENDER, transports=("shared_memory",)),
            replace(RECEIVER, transports=("zmq_tcp",)),
            r"shared_memory: the receiver accepts \['zmq_tcp'\]",
        ),
        (
            replace(SENDER, transports=("shared_memory",)),
            replace(RECEIVER, host_id="host-b"),
            "is on host 'host-b', this is 'host-a'",
        ),
        (
            replace(SENDER, transports=("shared_memory",)),
            replace(RECEIVER, regions=(PRIVATE,)),
            "memory of .'attention'. is private",
        ),
        (replace(SENDER, transports=("zmq_tcp",)), replace(RECEIVER, endpoint="fake://1"), "not tcp://"),
        (replace(SENDER, transports=("fake",)), RECEIVER, "not fake://"),
        (
            replace(SENDER, transports=("shared_memory", "cuda_ipc")),
            replace(RECEIVER, regions=(CUDA,)),
            "moves host memory only.*cuda:GPU-1.*moves GPU memory only",
        ),
    ],
)
def test_says_why_none_fits(sender: Peer, receiver: Peer, reason: str) -> None:
    with pytest.raises(TransportUnavailableError, match=reason) as refused:
        select_transports(sender, receiver)
    assert "'decode-0'" in str(refused.value)


def test_a_peer_survives_the_wire() -> None:
    peer = replace(RECEIVER, curve_public_key="key", regions=(SHARED, CUDA))
    assert Peer.from_proto(peer.to_proto()) == peer


@pytest.mark.parametrize(
    ("peer", "field"),
    [
        (replace(RECEIVER, worker_id=""), "worker_id"),
        (replace(RECEIVER, incarnation=""), "incarnation"),
        (replace(RECEIVER, incarnation="x" * 41), "incarnation"),
        (replace(RECEIVER, endpoint=""), "endpoint"),
        (replace(RECEIVER, regions=()), "regions"),
        (replace(RECEIVER, regions=(replace(SHARED, num_blocks=0),)), "regions"),
        (replace(RECEIVER, regions=(replace(SHARED, block_bytes=0),)), "regions"),
        (replace(RECEIVER, regions=(replace(CUDA, export=CudaExport(b"x", 7, 8)),)), "cuda_ipc_handle"),
    ],
)
def test_a_malformed_peer_names_the_field(peer: Peer, field: str) -> None:
    with pytest.raises(InvalidPeerError, match=field):
        Peer.from_proto(peer.to_proto())


@pytest.mark.parametrize(
    ("theirs", "what"),
    [
        ([replace(SHARED, fingerprint="other")], "'other'"),
        ([replace(SHARED, block_bytes=200)], "200 bytes"),
        ([replace(SHARED, group="latent")], "latent"),
        ([SHARED, SHARED], "cache groups"),
    ],
)
def test_layouts_that_differ(theirs: list[RegionFacts], what: str) -> None:
    check_same_layout([PRIVATE], [replace(SHARED, num_blocks=99)], "decode-0")
    with pytest.raises(FingerprintMismatchError, match=what):
        check_same_layout([PRIVATE], theirs, "decode-0")
