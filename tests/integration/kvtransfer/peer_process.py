"""A sender or a receiver in a process of its own, for tests that kill it.

Speaks JSON lines: commands on stdin, answers on stdout.
"""

from __future__ import annotations

import json
import sys

from baton.v1 import kv_pb2
from kvtransfer.peer import Peer
from kvtransfer.receiver import Receiver
from kvtransfer.sender import Sender
from tests.integration.kvtransfer.pools import Pool, make_pool

BLOCK_BYTES, NUM_BLOCKS = 1 << 20, 32
FILL = 0x5A


def make_attention(gpu: int | None, *, shared: bool = False, block_bytes: int = BLOCK_BYTES) -> Pool:
    return make_pool("attention", block_bytes, NUM_BLOCKS, gpu=gpu, shared=shared)


def answer(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def run_sender(transport: str, gpu: int | None, block_bytes: str) -> None:
    """Push the blocks that are commanded; every byte is FILL."""
    pool = make_attention(gpu, block_bytes=int(block_bytes))
    pool.blocks[:] = FILL
    sender = Sender("prefill-0", "s1", [pool.region], transports=[transport], allow_fallback=False)
    answer(ok=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "peer" in command:
            peer = Peer.from_proto(kv_pb2.KvPeer.FromString(bytes.fromhex(command["peer"])))
            transfer = sender.begin(peer, "t", 1, [command["block_ids"]], command["lease_s"])
        elif "push" in command:
            for positions in command["push"]:
                transfer.push(0, positions[0], positions)
        answer(ok=True)


def run_receiver(transport: str, gpu: int | None, bind: str, incarnation: str) -> None:
    """Expect what is commanded."""
    pool = make_attention(gpu, shared=True)
    receiver = Receiver(
        "decode-0",
        incarnation,
        [pool.region],
        bind=bind,
        transports=[transport],
        on_event=lambda event: None,
    )
    answer(peer=receiver.peer.to_proto().SerializeToString().hex())
    for line in sys.stdin:
        command = json.loads(line)
        receiver.expect(command["transfer_id"], 1, [command["block_ids"]], command["lease_s"])
        answer(ok=True)


if __name__ == "__main__":
    role, transport, gpu, *arguments = sys.argv[1:]
    run = {"sender": run_sender, "receiver": run_receiver}[role]
    run(transport, int(gpu) if gpu else None, *arguments)
