"""Slots give every request a place, and the device's tables follow the requests' by edits."""

from __future__ import annotations

import random

from engine.request import Request
from engine.runner.cuda.slots import Slots
from engine.sampling_params import SamplingParams
from engine.step import ScheduledRow

COUNT, MAX_BLOCKS = 6, 10


def create_request(name: str, blocks: list[int]) -> Request:
    return Request(name, [1], 1, SamplingParams(), block_ids=[blocks])


def rows_of(requests: list[Request]) -> list[ScheduledRow]:
    return [ScheduledRow(request, 0, 1, sample=True) for request in requests]


class Mirror:
    """What the device holds after the edits."""

    def __init__(self) -> None:
        self.flat = [-1] * (COUNT * MAX_BLOCKS)

    def apply(self, slots: Slots) -> None:
        for where, block in zip(*slots.take_edits(), strict=True):
            self.flat[where] = block

    def table(self, slot: int, length: int) -> list[int]:
        return self.flat[slot * MAX_BLOCKS : slot * MAX_BLOCKS + length]


def test_tables_follow_whatever_happens_to_them() -> None:
    draw = random.Random(1)
    slots, mirror = Slots(COUNT, MAX_BLOCKS), Mirror()
    alive: list[Request] = []
    ended: list[str] = []
    for step in range(400):
        if alive and draw.random() < 0.2:
            ended.append(alive.pop(draw.randrange(len(alive))).request_id)
        # More requests than slots: some are preempted and come back.
        while len(alive) < COUNT + 3:
            alive.append(create_request(f"{step}-{len(alive)}", [draw.randrange(99)]))
        for request in alive:
            table = request.block_ids[0]
            match draw.randrange(4):
                case 0 if len(table) < MAX_BLOCKS:
                    table.append(draw.randrange(99))
                case 1:
                    table[-1] = draw.randrange(99)
                case 2:
                    request.block_ids[0] = [draw.randrange(99) for _ in range(draw.randint(1, MAX_BLOCKS))]
        slots.forget(ended)
        ended = []
        running = draw.sample(alive, draw.randint(1, COUNT))
        found, _ = slots.find(rows_of(running))
        mirror.apply(slots)
        assert len(set(found)) == len(running)
        for request, slot in zip(running, found, strict=True):
            table = request.block_ids[0]
            assert mirror.table(slot, len(table)) == table


def test_a_grown_table_costs_one_edit() -> None:
    slots = Slots(COUNT, MAX_BLOCKS)
    request = create_request("a", [5, 6, 7])
    assert slots.find(rows_of([request])) == ([0], [0])
    assert slots.take_edits() == ([0, 1, 2], [5, 6, 7])
    request.block_ids[0].append(8)
    assert slots.find(rows_of([request])) == ([0], [])
    assert slots.take_edits() == ([3], [8])
    slots.find(rows_of([request]))
    assert slots.take_edits() == ([], [])


def test_another_request_under_the_same_id_is_new() -> None:
    slots = Slots(COUNT, MAX_BLOCKS)
    slots.find(rows_of([create_request("a", [5])]))
    slots.take_edits()
    assert slots.find(rows_of([create_request("a", [5])])) == ([0], [0])
    assert slots.take_edits() == ([0], [5])
