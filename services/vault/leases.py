"""Which blocks of the pool belong to which worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.common.errors import BatonError, ErrorReason


@dataclass(frozen=True, slots=True)
class Share:
    """A run of blocks that one incarnation of a worker hands out.

    Attributes:
        owner: worker and incarnation, for people.
        blocks: ids, the same in each cache group.
    """

    owner: str
    blocks: range


class Shares:
    """Cuts runs of blocks from one pool. Lives on the event loop.

    Args:
        settle_s: how long a share that was given back is kept from others, seconds.
        clock: seconds, monotonic.
    """

    def __init__(self, num_blocks: int, settle_s: float, clock: Callable[[], float]) -> None:
        self.num_blocks = num_blocks
        self._settle_s = settle_s
        self._clock = clock
        self._held: list[Share] = []
        self._settling: list[tuple[float, Share]] = []

    @property
    def held(self) -> tuple[Share, ...]:
        """Shares of workers that are here, by first block."""
        return tuple(sorted(self._held, key=lambda share: share.blocks.start))

    def take(self, owner: str, num_blocks: int) -> Share | float:
        """Cut a share; the lowest run that is long enough.

        Args:
            num_blocks: >= 1; 0: the longest run that is free.
        Returns:
            The share; or, if shares that still settle are in the way, seconds until it is worth asking again.
        Raises:
            BatonError: OUT_OF_BLOCKS; says who has the blocks.
        """
        now = self._clock()
        self._settling = [(until, share) for until, share in self._settling if until > now]
        settling = [share.blocks for _, share in self._settling]
        taken = [share.blocks for share in self._held]
        free, later = self._gaps(taken + settling), self._gaps(taken)
        # What is asked for "all" waits for what will be free in a moment.
        wanted = num_blocks or max((len(gap) for gap in later), default=0) or 1
        for gap in free:
            if len(gap) >= wanted:
                share = Share(owner, gap[:wanted])
                self._held.append(share)
                return share
        if any(len(gap) >= wanted for gap in later):
            return min(until for until, _ in self._settling) - now
        holders = ", ".join(f"{len(share.blocks)} by {share.owner}" for share in self.held) or "none"
        raise BatonError(
            ErrorReason.OUT_OF_BLOCKS,
            f"kv_bytes: {wanted} blocks in a row are wanted; the vault has {self.num_blocks}, "
            f"held: {holders}",
        )

    def give_back(self, share: Share) -> None:
        """End a share; its blocks settle first."""
        self._held.remove(share)
        self._settling.append((self._clock() + self._settle_s, share))

    def _gaps(self, taken: list[range]) -> list[range]:
        gaps, start = [], 0
        for blocks in [*sorted(taken, key=lambda one: one.start), range(self.num_blocks, self.num_blocks)]:
            if blocks.start > start:
                gaps.append(range(start, blocks.start))
            start = max(start, blocks.stop)
        return gaps
