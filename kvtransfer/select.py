"""Which transport two peers use: a pure function of what is known of both."""

from __future__ import annotations

from kvtransfer.errors import TransportUnavailableError
from kvtransfer.peer import Peer
from kvtransfer.region import CPU

CUDA_IPC = "cuda_ipc"
SHARED_MEMORY = "shared_memory"
ZMQ_TCP = "zmq_tcp"
FAKE = "fake"
KNOWN = (CUDA_IPC, SHARED_MEMORY, ZMQ_TCP, FAKE)
# Those whose sender writes into the receiver's memory itself, and so must be fenced (ADR 2).
DIRECT = frozenset({CUDA_IPC, SHARED_MEMORY})

FAKE_SCHEME = "fake://"
TCP_SCHEME = "tcp://"


def select_transports(sender: Peer, receiver: Peer) -> tuple[str, ...]:
    """Name the transports that fit, in the sender's order of preference.

    Returns:
        At least one; the first is the one to open, the others are fallbacks.
    Raises:
        TransportUnavailableError: none fits; the message says why for each.
    """
    fitting, reasons = [], []
    for name in sender.transports:
        reason = unfit(name, sender, receiver)
        if reason:
            reasons.append(f"{name}: {reason}")
        else:
            fitting.append(name)
    if not fitting:
        why = "; ".join(reasons) or "this worker has none configured"
        raise TransportUnavailableError(f"no transport reaches worker {receiver.worker_id!r}: {why}")
    return tuple(fitting)


def unfit(name: str, sender: Peer, receiver: Peer) -> str:
    """Say why a transport does not fit two peers; empty if it does."""
    if name not in KNOWN:
        return f"unknown; known are {', '.join(KNOWN)}"
    if name not in receiver.transports:
        return f"the receiver accepts {list(receiver.transports)}"
    scheme = FAKE_SCHEME if name == FAKE else TCP_SCHEME
    if not receiver.endpoint.startswith(scheme):
        return f"the receiver's endpoint {receiver.endpoint!r} is not {scheme}"
    devices = {region.device for peer in (sender, receiver) for region in peer.regions}
    # Whether the handles open, and on which host they are, shows when the link is opened: GPU
    # memory must not take the slow way only because containers share too little, so that is a
    # failure and a fallback, not a choice.
    if name == CUDA_IPC and CPU in devices:
        return "moves GPU memory only, but there are regions on cpu"
    if name == SHARED_MEMORY:
        if foreign := sorted(devices - {CPU}):
            return f"moves host memory only, but there are regions on {', '.join(foreign)}"
        if sender.host_id != receiver.host_id:
            return f"the receiver is on host {receiver.host_id!r}, this is {sender.host_id!r}"
        private = [region.group for region in receiver.regions if not region.shm_name]
        if private:
            return f"the receiver's memory of {private} is private"
    return ""
