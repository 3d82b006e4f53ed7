"""Which algorithm multiplies by how many rows, from proposals and measurements that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from engine.backends.cuda.cublaslt import Algorithm, Config
from engine.backends.cuda.product_choice import (
    REFERENCE_ROWS,
    Choice,
    Choices,
    adds_in_order,
    buckets,
    choose,
)
from engine.runner.cuda.shapes import chunk_sizes, decode_sizes

ROWS = (1, 64, REFERENCE_ROWS, 512)


def algorithm(name: str) -> Algorithm:
    """Names: "s" cuts sums, "o" adds up in another order, the number is its time."""
    return Algorithm(name.encode().ljust(64, b"\0"), 0)


def name_of(known: Algorithm) -> str:
    return known.data.rstrip(b"\0").decode()


def config(known: Algorithm) -> Config:
    split_k = 4 if name_of(known).startswith("s") else 1
    return Config(66, 0, split_k, 2 if split_k > 1 else 0, 0, 0, 0, 0, 0)


class Given:
    """Proposals by rows, and a trial in which an algorithm's name tells what it does."""

    def __init__(
        self, proposed: Mapping[int, Sequence[str]], unable: Mapping[str, int] | None = None
    ) -> None:
        self.proposed = proposed
        self.unable = unable or {}

    def algorithms(self, rows: int, limit: int) -> list[Algorithm]:
        return [algorithm(name) for name in self.proposed.get(rows, ())][:limit]

    def config(self, known: Algorithm) -> Config:
        return config(known)

    def checked(self, known: Algorithm, rows: int) -> Algorithm | None:
        return None if self.unable.get(name_of(known)) == rows else known

    def same(self, reference: Algorithm, algorithms: Mapping[int, Sequence[Algorithm]]) -> list[list[bool]]:
        order = name_of(reference)[0]
        return [[name_of(one)[0] == order for one in found] for found in algorithms.values()]

    def microseconds(self, rows: int, algorithms: Sequence[Algorithm]) -> list[float]:
        return [float(name_of(one)[1:]) for one in algorithms]


def chosen(given: Given) -> list[str]:
    choices = choose(given, given, ROWS)
    assert choices is not None
    assert [entry.rows for entry in choices.entries] == list(ROWS)
    return [name_of(entry.algorithm) for entry in choices.entries]


PROPOSED = {
    1: ("s1", "o2", "a9"),
    64: ("s3", "a5", "a4"),
    REFERENCE_ROWS: ("s5", "a7", "a6", "o1"),
    512: ("o8", "s2"),
}


def test_the_fastest_of_those_that_add_up_as_the_reference_does() -> None:
    """The reference is the first at REFERENCE_ROWS that does not split; it serves where no other does."""
    assert chosen(Given(PROPOSED)) == ["a7", "a4", "a6", "a7"]


def test_who_is_faster_does_not_change_the_reference() -> None:
    slow = PROPOSED | {REFERENCE_ROWS: ("a99", "o1", "a90")}
    assert chosen(Given(slow)) == ["a9", "a4", "a90", "a99"]


def test_a_reference_that_cannot_do_some_rows_is_not_forced_on_them() -> None:
    assert chosen(Given(PROPOSED, {"a7": 1}))[0] == "a9"


def test_a_small_lead_changes_nothing() -> None:
    assert chosen(Given(dict.fromkeys(ROWS, ("a100", "a99", "a97")))) == ["a97"] * 4
    assert chosen(Given(dict.fromkeys(ROWS, ("a100", "a99")))) == ["a100"] * 4


def test_nothing_proposed_is_no_choice() -> None:
    for proposed in ({}, dict.fromkeys(ROWS, ("s1",)), {1: ("a1",)}):
        given = Given(proposed)
        assert choose(given, given, ROWS) is None


def test_the_reference_is_asked_for_also_where_its_rows_are_not_wanted() -> None:
    given = Given(PROPOSED)
    choices = choose(given, given, (1, 64))
    assert choices is not None
    assert [name_of(entry.algorithm) for entry in choices.entries] == ["a7", "a4"]


def test_rows_take_the_next_larger_choice() -> None:
    choices = Choices(tuple(Choice(rows, algorithm(f"a{rows}"), 1.0) for rows in ROWS))
    taken = {rows: name_of(choices.for_rows(rows)) for rows in (1, 2, 64, 65, 256, 257, 512, 9999)}
    assert taken == {
        1: "a1", 2: "a64", 64: "a64", 65: "a256", 256: "a256", 257: "a512", 512: "a512", 9999: "a512",
    }  # fmt: skip


def test_choices_go_through_a_file_unchanged() -> None:
    choices = Choices((Choice(1, Algorithm(bytes(range(64)), 4096), 1.25), Choice(8, algorithm("a"), 3.0)))
    assert Choices.from_json(choices.to_json()) == choices


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '[{"rows": 1}]', "nonsense"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Choices.from_json(text)


def test_choices_out_of_order_are_refused() -> None:
    entries = (Choice(8, algorithm("a"), 1.0), Choice(1, algorithm("b"), 1.0))
    with pytest.raises(ValueError, match="choices for"):
        Choices.from_json(Choices(entries).to_json())


def test_large_outputs_are_not_tried_with_many_rows() -> None:
    assert buckets(6144, 2)[-1] == 2048
    assert buckets(128256, 4)[-1] == REFERENCE_ROWS
    assert buckets(28672, 2)[-1] == 2048
    assert buckets(10**7, 4)[-1] == REFERENCE_ROWS
    assert list(buckets(64, 2)) == sorted(set(buckets(64, 2)))


def test_every_size_that_steps_are_padded_to_has_a_choice_of_its_own() -> None:
    assert {*decode_sizes(256), *chunk_sizes(2048)} <= set(buckets(6144, 2))


def test_sums_in_parts_are_told_by_the_configuration() -> None:
    assert adds_in_order(config(algorithm("a1")))
    assert not adds_in_order(config(algorithm("s1")))
