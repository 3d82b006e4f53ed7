"""What is known of a transfer that the receiver acknowledged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransferStats:
    """What a finished transfer did.

    Attributes:
        transport: name.
        blocks: blocks sent, over all groups.
        bytes: bytes moved, headers excluded; none where blocks were computed in place.
        exposed_s: from commit() until the receiver had taken it, seconds; where the two do not share a
            clock, until its ACK was here.
    """

    transport: str
    blocks: int
    bytes: int
    exposed_s: float
