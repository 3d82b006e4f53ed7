from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.text.reasoning import ReasoningSplitter


def split(pieces: list[str], is_open: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(is_open=is_open)
    parts = [splitter.push(piece) for piece in pieces] + [splitter.flush()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


CASES = [
    ("<think>\nhm, 2 < 3\n</think>\n\nYes.", False, ("hm, 2 < 3\n", "Yes.")),
    ("  \n<think>a</think>b", False, ("a", "b")),
    ("a</think>\nb", True, ("a", "b")),
    ("\na", True, ("a", "")),
    ("No marks, 1 <think> late.", False, ("", "No marks, 1 <think> late.")),
    ("<thin", False, ("", "<thin")),
    ("<think>cut </thi", False, ("cut </thi", "")),
    ("<think>\n\n</think>\n\n", False, ("", "")),
    ("<think>a</think>\nb\n\nc <think>d</think>", False, ("a", "b\n\nc <think>d</think>")),
    ("", False, ("", "")),
]


@pytest.mark.parametrize(("text", "is_open", "expected"), CASES)
def test_whole_and_char_by_char(text: str, is_open: bool, expected: tuple[str, str]) -> None:
    assert split([text], is_open) == expected
    assert split(list(text), is_open) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "ink>", "\n", " ", "a"]), max_size=12))
def test_how_the_text_was_cut_does_not_matter(pieces: list[str]) -> None:
    assert split(pieces) == split(list("".join(pieces))) == split(["".join(pieces)])


def test_text_is_given_as_soon_as_it_is_sure() -> None:
    splitter = ReasoningSplitter(is_open=False)
    assert splitter.push("<think>") == ("", "")
    assert splitter.push("one <") == ("one ", "")
    assert splitter.push("b") == ("<b", "")
    assert splitter.push("</think>two") == ("", "two")
