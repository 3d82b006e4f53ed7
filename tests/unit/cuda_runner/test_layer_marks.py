"""After which layers a step says that their KV is written."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from bench.kernels.host import no_device
from engine.backends.cuda.layer_marks import LayerMarks, marked_layers


@pytest.mark.parametrize(
    ("num_layers", "marks"),
    [(1, (1,)), (2, (1, 2)), (28, (21, 26, 28)), (30, (22, 28, 30)), (32, (24, 30, 32))],
)
def test_marks_leave_little_for_the_end(num_layers: int, marks: tuple[int, ...]) -> None:
    assert marked_layers(num_layers) == marks


def test_a_moment_has_come_with_the_note_of_its_step_or_a_later_one() -> None:
    with no_device("sm_90a"):
        marks = LayerMarks(32)
    first, second = marks.begin(), marks.begin()
    early, late = marks.moments(first, lambda: False), marks.moments(second, lambda: False)
    assert [moment.num_layers for moment in early] == [24, 30, 32]
    came: queue.SimpleQueue[str] = queue.SimpleQueue()

    def wait() -> None:
        for name, moment in (("24", early[0]), ("30", early[1]), ("32", early[2]), ("24 again", late[0])):
            moment.wait()
            came.put(name)

    waiting = threading.Thread(target=wait)
    waiting.start()
    for place, note, wanted in (
        (0, first, ["24"]),
        (1, second, ["30"]),
        (2, first, ["32"]),
        (0, second, ["24 again"]),
    ):
        time.sleep(0.005)
        assert came.empty()
        marks._host[place] = note
        assert [came.get(timeout=5) for _ in wanted] == wanted
    waiting.join()


def test_numbers_begin_again() -> None:
    with no_device("sm_90a"):
        marks = LayerMarks(1)
    marks._number = (1 << 31) - 2
    last, first = marks.begin(), marks.begin()
    assert (last, first) == ((1 << 31) - 1, 0)
    marks._host[0] = last
    marks.moments(last, lambda: False)[0].wait()
    with pytest.raises(RuntimeError, match="did not tell"):
        marks.moments(first, lambda: True)[0].wait()
    marks._host[0] = first
    for number in (last, first):
        marks.moments(number, lambda: False)[0].wait()
