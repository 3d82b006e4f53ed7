"""A sender or a receiver in a process of its own, for tests that kill it.

Speaks JSON lines: commands on stdin, answers on stdout.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from baton.v1 import kv_pb2
from kvtransfer.peer import Peer
from kvtransfer.receiver import Receiver
from kvtransfer.region import Region
from kvtransfer.sender import Sender
from kvtransfer.shared_memory import allocate_shared

BLOCK_BYTES, NUM_BLOCKS = 1 << 20, 32
FILL = 0x5A


def make_region(memory: memoryview, shm_name: str = "") -> Region:
    return Region("attention", BLOCK_BYTES, NUM_BLOCKS, "cpu", "fp", memory, shm_name)


def answer(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def run_sender(transport: str) -> None:
    """Push one block a command; every byte is FILL."""
    memory = np.full(BLOCK_BYTES * NUM_BLOCKS, FILL, dtype=np.uint8)
    region = make_region(memoryview(memory))
    sender = Sender("prefill-0", "s1", [region], transports=[transport], allow_fallback=False)
    for line in sys.stdin:
        command = json.loads(line)
        if "peer" in command:
            peer = Peer.from_proto(kv_pb2.KvPeer.FromString(bytes.fromhex(command["peer"])))
            transfer = sender.begin(peer, "t", 1, [command["block_ids"]], command["lease_s"])
        elif "push" in command:
            for position in command["push"]:
                transfer.push(0, position, [position])
        answer(ok=True)


def run_receiver(transport: str, bind: str, incarnation: str) -> None:
    """Expect what is commanded."""
    shared = allocate_shared("test", BLOCK_BYTES * NUM_BLOCKS)
    receiver = Receiver(
        "decode-0",
        incarnation,
        [make_region(shared.memory, shared.name)],
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
    role, *arguments = sys.argv[1:]
    {"sender": run_sender, "receiver": run_receiver}[role](*arguments)
