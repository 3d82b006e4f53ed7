"""`baton chat`: what Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator

import pytest

from baton.cli.chat import _print_answer
from baton.generation import Event
from baton.v1.inference_pb2 import Delta


def answer(*, swallows: bool) -> Generator[Event, None, None]:
    """An answer without an end; Ctrl-C comes at its third token."""
    for number in range(100):
        with contextlib.suppress(KeyboardInterrupt) if swallows else contextlib.nullcontext():
            if number == 2:
                signal.raise_signal(signal.SIGINT)
        yield Delta(text=f"{number} ")


@pytest.mark.parametrize("swallows", [False, True])
def test_ctrl_c_ends_the_answer_wherever_it_comes(swallows: bool) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert _print_answer(answer(swallows=swallows)) == "0 1 "
    assert signal.getsignal(signal.SIGINT) is before
