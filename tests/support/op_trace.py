"""Which operation first gave a token other bits: what every one of them made of every token, as hashes.

with OpTrace(engine) as trace:   before the first request; no graphs, for their operations are not calls
    engine.answer(...)
first_difference(trace.hashes, other.hashes)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from engine.runner.cuda.batch import decodes_first
from engine.step import ScheduledRow, SchedulerOutput
from tests.support.answers import AnsweringEngine

Token = tuple[int, int]  # number of its request, position
Hashes = dict[Token, dict[str, int]]
_LARGE = 2**31 - 1


class OpTrace:
    """Wraps the operations of an engine's backend.

    Attributes:
        hashes: of each token, by operation in the order of calls: "linear 3 in", "linear 3 out", ...
    """

    def __init__(self, engine: AnsweringEngine) -> None:
        self.hashes: Hashes = {}
        self._tokens: list[Token] = []
        self._rows: list[Token] = []
        self._factors = torch.Generator().manual_seed(5)
        self._known: dict[int, torch.Tensor] = {}
        self._calls: itertools.count[int] = itertools.count()
        loop: Any = engine.built.engine._loop
        self._runner = loop._runner
        self._backend = type(self._runner._backend)
        self._launch = self._runner.launch
        self._originals: dict[str, Any] = {}

    def __enter__(self) -> OpTrace:
        self._runner.launch = self._launched
        wraps = {"linear": self._product, "logits": self._product, "take_rows": self._taken}
        for name in ("embedding", "rms_norm", "gated_activation", "rope_kv_store"):
            wraps[name] = self._made
        for name, wrap in wraps.items():
            self._originals[name] = getattr(self._backend, name)
            setattr(self._backend, name, wrap(name, self._originals[name]))
        return self

    def __exit__(self, *_: object) -> None:
        for name, original in self._originals.items():
            setattr(self._backend, name, original)
        self._runner.launch = self._launch

    def _launched(self, output: SchedulerOutput) -> object:
        rows: Sequence[ScheduledRow] = output.rows
        if hasattr(self._runner, "_prompts_apart"):
            rows, _ = decodes_first(rows, self._runner._prompts_apart)
        self._tokens = []
        for row in rows:
            number = int(row.request.request_id)  # as AnsweringEngine counts them
            self._tokens += [(number, row.start + offset) for offset in range(row.num_tokens)]
        self._rows, self._calls = self._tokens, itertools.count()
        return self._launch(output)

    def _product(self, name: str, call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def traced(backend: Any, x: torch.Tensor, weight: Any) -> torch.Tensor:
            shape = f"{weight.out_features} x {weight.in_features}"
            self._note(f"{name} {shape} in", x)
            result = call(backend, x, weight)
            self._note(f"{name} {shape} out", result)
            return result

        return traced

    def _made(self, name: str, call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def traced(*args: Any, **keywords: Any) -> torch.Tensor:
            result = call(*args, **keywords)
            self._note(name, result)
            return result

        return traced

    def _taken(self, _: str, call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def traced(backend: Any, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            self._rows = [self._tokens[index] for index in rows.tolist()]
            return call(backend, x, rows)

        return traced

    def _note(self, name: str, result: torch.Tensor) -> None:
        # The order of calls is part of the name; the last layer's are the same for all rows that reach it.
        label = f"{next(self._calls):03} {name}"
        bits = result.reshape(result.shape[0], -1).contiguous()
        ints = bits.view(torch.int16 if bits.element_size() == 2 else torch.int32).long()
        width = ints.shape[1]
        if width not in self._known:
            made = torch.randint(1, _LARGE, (width,), generator=self._factors)
            self._known[width] = made.to(ints.device)
        sums = (ints * self._known[width]).sum(1).tolist()
        for token, value in zip(self._rows, sums, strict=False):
            self.hashes.setdefault(token, {})[label] = value


def first_difference(hashes: Hashes, wanted: Hashes) -> str:
    """The first operation that gave a token other bits, and how often it did; "" if none did.

    A request's first token that differs counts: those after it attend to it.
    """
    counts: dict[str, int] = {}
    example: dict[str, Token] = {}
    seen: set[int] = set()
    for token in sorted(hashes.keys() & wanted.keys()):
        mine, other = hashes[token], wanted[token]
        label = next((name for name in mine if name in other and mine[name] != other[name]), None)
        if label is None or token[0] in seen:
            continue
        seen.add(token[0])
        counts[label] = counts.get(label, 0) + 1
        example.setdefault(label, token)
    return "; ".join(
        f"{label}: {count} requests, such as request {example[label][0]} at {example[label][1]}"
        for label, count in sorted(counts.items())
    )
