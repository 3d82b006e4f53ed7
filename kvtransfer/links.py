"""What carries frames: a listener at the receiver, a link at the sender.

Each belongs to one `IoLoop`: its methods and its callbacks run in its turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvtransfer.frames import Payload
from kvtransfer.io_loop import IoLoop

Route = bytes
FrameFromSender = Callable[[Route, Payload, Payload], None]
FrameFromReceiver = Callable[[Payload, Payload], None]


class Listener(Protocol):
    """A receiver's end; frames come from many senders, each known by its route."""

    endpoint: str

    def start(self, loop: IoLoop, on_frame: FrameFromSender) -> None:
        """Begin to take frames, on this loop; called on it, as all that follows."""

    def send(self, route: Route, header: bytes, payload: bytes = b"") -> None:
        """Send a frame to one sender; dropped if that sender is gone."""

    def close(self) -> None:
        """Stop; frames already taken to be sent still go out within a short time."""


class Link(Protocol):
    """A sender's end, to one receiver; frames keep their order.

    Attributes:
        takes_turns: what uses it may be run by `IoLoop.run`, on any thread.
    """

    takes_turns: bool

    def send(self, header: bytes, payload: Payload = b"") -> None:
        """Send a frame; a large payload is not copied and must not change until answered."""

    def close(self, linger_ms: int) -> None:
        """Stop; frames taken to be sent go out if that takes no longer than `linger_ms`."""


class DirectWriter(Protocol):
    """Writes straight into a receiver's blocks; used by the copy threads, several at once.

    Attributes:
        batch_blocks: blocks that one `write` may take at most, >= 1; small enough that nobody
            minds waiting for them.
    """

    batch_blocks: int

    def piece_blocks(self, num_blocks: int) -> int:
        """Blocks that one thread should take of so many that were pushed together, >= 1."""

    def write(
        self,
        group: int,
        target_block_ids: Sequence[int],
        source_block_ids: Sequence[int],
        part: range | None = None,
    ) -> int:
        """Copy blocks, pair by pair; they are in place when this returns, and none is being
        written when it raises.

        Args:
            part: which bytes of each block; None: all.
        Returns:
            Bytes moved: none for a block that is in place already, since both ends have one pool.
        """

    def close(self) -> None:
        """Give up the receiver's memory."""
