"""Which logits a step wants for the log-probabilities of prompts, and how the answers are taken apart."""

from __future__ import annotations

import numpy as np
import torch

from engine.request import Request
from engine.runner.cuda.foretold import ForetoldValues, foretold
from engine.sampling_params import SamplingParams
from engine.step import ScheduledRow


def create_row(
    name: str, length: int, start: int, num_tokens: int, wish: int | None, prompt: int | None = None
) -> ScheduledRow:
    tokens = list(range(100, 100 + length))
    request = Request(name, tokens, prompt or length, SamplingParams(prompt_logprobs=wish))
    return ScheduledRow(request, start, num_tokens, start + num_tokens == length)


def lasts_of(rows: list[ScheduledRow]) -> np.ndarray:
    ends = np.cumsum([row.num_tokens for row in rows]) - 1
    return np.array([end for end, row in zip(ends, rows, strict=True) if row.sample], np.int32)


def test_nobody_asks() -> None:
    rows = [create_row("a", 8, 7, 1, None), create_row("b", 9, 0, 9, None)]
    assert foretold(rows, lasts_of(rows)) is None


def test_draws_and_prompts_in_one_step() -> None:
    rows = [
        create_row("decodes", 8, 7, 1, 1, prompt=5),  # its prompt is long past
        create_row("plain", 6, 2, 4, None),
        create_row("middle", 9, 2, 3, 2),  # foretells 103, 104, 105
        create_row("end", 7, 4, 3, 0),  # foretells 105, 106, and draws
    ]
    found = foretold(rows, lasts_of(rows))
    assert found is not None
    assert found.wanted.tolist() == [0, 4, 5, 6, 7, 8, 9, 10]
    assert found.wanted[found.lasts].tolist() == [0, 4, 10]
    assert found.wishes.tolist() == [-1, -1, 2, 2, 2, 0, 0, -1]
    assert found.next_tokens.tolist() == [0, 0, 103, 104, 105, 105, 106, 0]
    assert found.asked == (("middle", 2, 3), ("end", 0, 2))
    values = torch.arange(8.0)[:, None].expand(8, 21) - torch.arange(21) / 100
    ids = torch.arange(21, dtype=torch.int32).expand(8, 21)
    answers = ForetoldValues(found, values, ids).by_request(values, ids)
    assert [round(entry.sampled) for entry in answers["middle"]] == [2, 3, 4]
    assert [round(entry.sampled) for entry in answers["end"]] == [5, 6]
    assert all(entry.top_ids == (1, 2) for entry in answers["middle"])
    assert all(entry.top_ids == () for entry in answers["end"])
