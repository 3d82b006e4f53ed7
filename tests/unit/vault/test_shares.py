"""Shares of one pool, with a clock that the test moves."""

from __future__ import annotations

import pytest

from services.common.errors import BatonError, ErrorReason
from services.vault.leases import Share, Shares


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make(num_blocks: int = 100) -> tuple[Shares, Clock]:
    clock = Clock()
    return Shares(num_blocks, settle_s=1.0, clock=clock), clock


def take(shares: Shares, owner: str, num_blocks: int) -> Share:
    share = shares.take(owner, num_blocks)
    assert isinstance(share, Share)
    return share


def test_shares_do_not_overlap_and_all_means_the_rest() -> None:
    shares, _ = make()
    a, b, c = (take(shares, name, size) for name, size in (("a", 30), ("b", 20), ("c", 0)))
    assert [share.blocks for share in (a, b, c)] == [range(30), range(30, 50), range(50, 100)]
    assert [share.owner for share in shares.held] == ["a", "b", "c"]


def test_what_is_given_back_settles_first() -> None:
    shares, clock = make()
    a = take(shares, "a", 60)
    take(shares, "b", 40)
    shares.give_back(a)
    assert shares.take("a again", 60) == pytest.approx(1.0)
    clock.now += 0.4
    assert shares.take("a again", 0) == pytest.approx(0.6)
    clock.now += 0.6
    assert take(shares, "a again", 60).blocks == range(60)


def test_other_blocks_are_given_while_some_settle() -> None:
    shares, clock = make()
    a = take(shares, "a", 30)
    shares.give_back(a)
    assert take(shares, "b", 30).blocks == range(30, 60)
    assert take(shares, "c", 40).blocks == range(60, 100)
    clock.now += 1.0
    assert take(shares, "d", 10).blocks == range(10)
    # Neighbours that both are free are one run again.
    assert take(shares, "e", 20).blocks == range(10, 30)


def test_too_many_are_refused_with_who_has_them() -> None:
    shares, _ = make()
    take(shares, "prefill-0/x", 70)
    with pytest.raises(BatonError, match=r"31 blocks in a row.* held: 70 by prefill-0/x") as refused:
        shares.take("b", 31)
    assert refused.value.reason is ErrorReason.OUT_OF_BLOCKS
    take(shares, "b", 30)
    with pytest.raises(BatonError, match="1 blocks"):
        shares.take("c", 0)
