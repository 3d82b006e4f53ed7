from __future__ import annotations

import pytest

from services.gateway.compute_pace import ComputePace
from services.gateway.routing import PrefillFacts, pick_prefill


def test_the_best_pace_counts_and_fades_by_the_token() -> None:
    pace = ComputePace()
    assert pace.tokens_per_s == 0
    pace.note(1000, 1.0)
    pace.note(1000, 0.5)
    assert pace.tokens_per_s == 2000
    pace.note(0, 0.0)
    assert pace.tokens_per_s == 2000
    pace.note(32768, 32768.0)
    assert pace.tokens_per_s == pytest.approx(1000)


def test_short_rests_of_cached_prompts_do_not_make_a_worker_slow() -> None:
    pace = ComputePace()
    pace.note(4000, 1.0)
    for _ in range(500):
        pace.note(4, 0.01)
    assert pace.tokens_per_s > 3800


def test_one_prompt_does_not_set_a_worker_apart() -> None:
    """The worker that holds a prefix keeps it, though another one's first prompt went ten times as fast."""
    cold, warm = ComputePace(), ComputePace()
    cold.note(60, 0.035)
    warm.note(100, 0.006)
    assert not cold.is_proven
    assert _pick(cold, warm) == 0
    for pace, seconds in ((cold, 1.2), (warm, 0.12)):
        pace.note(2000, seconds)
    assert cold.is_proven
    assert _pick(cold, warm) == 1


def _pick(*paces: ComputePace) -> int:
    """Return who gets a prompt of 60 tokens, 48 of which the first worker has."""
    return pick_prefill(
        [
            PrefillFacts(
                pending_tokens=0,
                held_tokens=0,
                new_tokens=0,
                cached_tokens=0 if i else 48,
                tokens_per_s=pace.tokens_per_s,
                is_pace_proven=pace.is_proven,
                last_pick=0,
            )
            for i, pace in enumerate(paces)
        ],
        60,
    )
