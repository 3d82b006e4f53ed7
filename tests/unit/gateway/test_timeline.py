"""Timelines: what is kept, for how long, and what changed since."""

from __future__ import annotations

from services.gateway.timeline import Timeline, Timelines


def timeline(key: str) -> Timeline:
    return Timeline(key, key, received_s=0.0, started_unix_s=0.0, prompt_tokens=1)


def test_the_ring_is_bounded_and_keeps_what_still_runs() -> None:
    timelines = Timelines(most_ended=3)
    running = timeline("running")
    timelines.add(running)
    for number in range(10):
        one = timeline(str(number))
        timelines.add(one)
        timelines.end(one)
        timelines.end(one)
    assert [one.key for one in timelines] == ["7", "8", "9", "running"]


def test_since_gives_each_change_once_latest_last() -> None:
    timelines = Timelines()
    first, second = timeline("a"), timeline("b")
    timelines.add(first)
    timelines.add(second)
    seen = timelines.since(0, most=10)
    assert [one.key for one in seen] == ["a", "b"]
    stamp = seen[-1].stamp
    assert timelines.since(stamp, most=10) == []
    timelines.touch(first)
    assert timelines.since(stamp, most=10) == [first]
    assert timelines.since(0, most=1) == [first]


def test_what_runs_is_brought_up_to_date_when_somebody_looks() -> None:
    timelines = Timelines()
    running = timeline("a")

    def update() -> None:
        running.tokens += 1
        timelines.touch(running)

    timelines.add(running, update)
    (seen,) = timelines.since(0, most=10)
    assert seen.tokens == 1
    assert timelines.since(seen.stamp, most=10) == [running]
    timelines.end(running)
    stamp = running.stamp
    assert timelines.since(stamp, most=10) == []
    assert running.tokens == 2


def test_open_bars_end_with_the_reason() -> None:
    one = timeline("a")
    one.begin("queue").end_s = 0.5
    one.begin("decode", "d0")
    one.end_open("WORKER_LOST")
    assert [(bar.kind, bar.failed) for bar in one.bars] == [("queue", ""), ("decode", "WORKER_LOST")]
    assert all(bar.end_s is not None for bar in one.bars)
