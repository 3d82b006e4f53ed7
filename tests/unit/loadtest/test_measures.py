"""Figures from records whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.health import Health, warnings
from loadtest.measures import Targets, measure
from loadtest.percentiles import of_groups, of_values, share_bounds
from loadtest.record import Outcome, Record


def record(index: int, planned_s: float, token_s: list[float], **changes: object) -> Record:
    values: dict[str, object] = {
        "sent_s": planned_s,
        "token_s": token_s,
        "token_counts": [1] * len(token_s),
        "end_s": token_s[-1] if token_s else planned_s + 0.01,
        "outcome": Outcome.OK,
        **changes,
    }
    return Record(index, index, 10, 5, False, planned_s, **values)  # type: ignore[arg-type]


def test_latencies_count_from_the_planned_time() -> None:
    late = record(0, 1.0, [2.0, 2.1, 2.3], sent_s=1.9)
    measures = measure([late])
    assert measures.ttft.at(50).value == pytest.approx(1.0)
    assert measures.e2e.at(50).value == pytest.approx(1.3)
    assert measures.tpot.at(50).value == pytest.approx(0.15)
    assert measures.worst_gap.max == pytest.approx(0.2)
    assert measures.first_gap.max == pytest.approx(0.1)
    assert measures.lag.max == pytest.approx(0.9)


def test_tokens_of_one_message_have_no_gap() -> None:
    one = record(0, 0.0, [1.0, 2.0], token_counts=[1, 3])
    assert one.gaps_s() == [1.0, 0.0, 0.0]
    assert one.tokens == 4
    assert one.tpot_s == pytest.approx(1 / 3)


def test_goodput_wants_both_targets_of_every_request() -> None:
    targets = Targets(ttft_s=0.5, tpot_s=0.1)
    records = [
        record(0, 0.0, [0.4, 0.45]),
        record(1, 1.0, [1.6, 1.65]),  # TTFT missed
        record(2, 2.0, [2.1, 2.4]),  # TPOT missed
        record(3, 3.0, [], outcome=Outcome.ERROR, reason="QUEUE_FULL"),
        record(4, 3.5, [3.6], outcome=Outcome.CANCELLED),
    ]
    measures = measure(records, targets=targets, window_s=4.0)
    assert measures.attainment == pytest.approx(1 / 4)
    assert measures.attainment_bounds == share_bounds(1, 4)
    assert measures.goodput == pytest.approx(1 / 4)
    assert measures.errors == {"QUEUE_FULL": 1}
    assert measures.outcomes == {"ok": 3, "cancelled": 1, "error": 1}
    assert measure(records, targets=targets.scaled(10)).attainment == pytest.approx(3 / 4)


def test_slow_and_cancelled_clients_do_not_spoil_latencies_but_count_as_load() -> None:
    slow = record(1, 0.0, [5.0, 9.0])
    slow.slow = True
    measures = measure([record(0, 0.0, [0.1, 0.2]), slow])
    assert measures.ttft.count == 1
    assert measures.output_rate == pytest.approx(4 / 9)


def test_the_warm_up_is_left_out() -> None:
    measures = measure([record(0, 0.5, [9.0]), record(1, 3.0, [3.1])], warmup_s=2.0)
    assert measures.requests == 1
    assert measures.ttft.max == pytest.approx(0.1)


def test_bounds_of_a_share() -> None:
    """Wilson's interval, by its tabulated values; it covers the truth in 95 of 100 samples."""
    assert share_bounds(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert share_bounds(100, 100) == pytest.approx((0.9630, 1.0), abs=1e-4)
    assert share_bounds(0, 0) == (0.0, 1.0)
    met = np.random.default_rng(0).binomial(150, 0.9, 4000)
    covered = [low <= 0.9 <= high for low, high in (share_bounds(int(one), 150) for one in met)]
    assert 0.93 <= np.mean(covered) <= 0.98


def test_percentiles_are_order_statistics() -> None:
    found = of_values([float(value) for value in range(1, 101)])
    assert [found.at(level).value for level in (50, 90, 99)] == [50, 90, 99]
    assert of_values([]).at(99).value == 0.0
    few = of_values([1.0, 2.0, 3.0]).at(99)
    assert (few.value, few.high) == (3.0, None)


@pytest.mark.parametrize(("size", "level"), [(200, 50), (200, 90), (3000, 99)])
def test_bounds_hold_the_true_percentile_as_often_as_they_say(size: int, level: int) -> None:
    random = np.random.default_rng(3)
    true = -np.log(1 - level / 100)
    held = 0
    for _ in range(300):
        found = of_values(random.exponential(1.0, size)).at(level)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= true <= found.high
    assert held / 300 >= 0.92


def test_gaps_of_one_request_are_not_independent() -> None:
    random = np.random.default_rng(1)
    pace = random.exponential(1.0, 30)
    groups = [[float(value)] * 100 for value in pace]
    grouped, single = of_groups(groups).at(50), of_values([v for part in groups for v in part]).at(50)
    assert grouped.value == single.value
    assert grouped.low is not None
    assert grouped.high is not None
    assert single.low is not None
    assert single.high is not None
    assert grouped.high - grouped.low > 3 * (single.high - single.low)
    assert grouped.low <= np.log(2) <= grouped.high


def test_records_survive_their_file() -> None:
    one = record(3, 1.0, [1.25, 1.5], answer=[1, 2], reason="X", queue_s=0.1)
    assert Record.from_json(one.to_json()) == one


def test_a_generator_that_falls_behind_is_named() -> None:
    fine = Health(cpu_share=0.3, lag_p99_s=0.001, stall_p99_s=0.002)
    assert warnings([fine]) == []
    (text,) = warnings([fine, Health(cpu_share=0.97, lag_p99_s=0.2, stall_p99_s=0.0)])
    assert "generator 1" in text
    assert "97 %" in text
    assert "200.0 ms late" in text
