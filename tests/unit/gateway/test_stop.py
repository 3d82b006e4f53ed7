from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.text.stop import StopStrings


def run(stops: list[str], parts: list[str]) -> tuple[list[str], str]:
    stop = StopStrings(stops)
    shown: list[str] = []
    for part in parts:
        shown.append(stop.push(part))
        if stop.matched:
            return shown, stop.matched
    shown.append(stop.flush())
    return shown, ""


def test_without_stop_strings_nothing_is_held() -> None:
    assert run([], ["a", "b"]) == (["a", "b", ""], "")


def test_a_match_across_pieces_is_cut() -> None:
    assert run(["STOP"], ["one S", "TO", "P two"]) == (["one ", "", ""], "STOP")


def test_text_is_held_exactly_as_long_as_needed() -> None:
    assert run(["STOP"], ["S", "T", "x", "ST"]) == (["", "", "STx", "", "ST"], "")


def test_a_held_start_may_overlap_itself() -> None:
    assert run(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", ""], "aab")


@pytest.mark.parametrize(
    ("stops", "text", "shown", "matched"),
    [
        (["b", "ab"], "xab", "x", "ab"),
        (["bc", "ab"], "xabc", "x", "ab"),
        (["abcd", "bc"], "xabcd", "xa", "bc"),
        (["\n\n"], "a\n\nb", "a", "\n\n"),
        (["🎉"], "x🎉y", "x", "🎉"),
    ],
)
def test_the_first_to_be_complete_wins_then_the_longest(
    stops: list[str], text: str, shown: str, matched: str
) -> None:
    for parts in ([text], list(text)):
        pieces, found = run(stops, parts)
        assert ("".join(pieces), found) == (shown, matched)


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_the_result_does_not_depend_on_the_pieces(stops: list[str], parts: list[str]) -> None:
    pieces, matched = run(stops, parts)
    text = "".join(parts)
    ends = [(text.index(stop) + len(stop), text.index(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert ("".join(pieces), matched) == (text, "")
    else:
        _, start, stop = min(ends)
        assert ("".join(pieces), matched) == (text[:start], stop)


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.text("abc", max_size=12))
def test_what_is_held_could_begin_a_stop_string(stops: list[str], text: str) -> None:
    stop = StopStrings(stops)
    shown = ""
    for char in text:
        shown += stop.push(char)
        if stop.matched:
            return
    held = text[len(shown) :]
    assert not held or any(other.startswith(held) for other in stops)
    assert all(not any(other.startswith(text[i:]) for other in stops) for i in range(len(shown)))
