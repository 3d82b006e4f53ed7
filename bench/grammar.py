"""What a grammar costs a step on the CPU: the mask at each token of real JSON, beside a row without one.

    .venv/bin/python -m bench.grammar

Checks that every text is a sentence of its grammar, and that its end allows only the end of sequence.
"""

from __future__ import annotations

import json
import statistics
import time

import numpy as np
import torch

from baton import models
from engine.grammar.bitmask import allowed_tokens
from engine.grammar.compiler import GrammarCompiler
from engine.models.load import load_model_config
from engine.request import Request
from engine.sampler.sampler import Sampler
from engine.sampling_params import SamplingParams
from services.gateway.constraints.grammar import json_rule
from services.gateway.text.tokenizer import Tokenizer

WORDS = (
    "the quick brown fox jumps over a lazy dog and runs into the woods, where it rests until the sun is up"
)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "home": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    "required": ["name", "age"],
}
CASES = {
    "a person": (
        PERSON,
        {"name": "Ana Žižková", "age": 33, "tags": ["red", "blue"], "home": {"city": "Praha"}},
    ),
    "free text": ({"type": "object"}, {"text": " ".join([WORDS] * 4)}),
    "numbers": ({"type": "array", "items": {"type": "number"}}, [n * 1.5 - 40 for n in range(60)]),
    "200 properties": (
        {"type": "object", "properties": {f"field_{n}": {"type": "integer"} for n in range(200)}},
        {f"field_{n}": n for n in range(0, 200, 4)},
    ),
}


def main() -> None:
    """Print a table."""
    directory = models.fetch(progress=models.show_progress)
    architecture = load_model_config(str(directory))
    vocab_size, eos = architecture.vocab_size, architecture.eos_token_ids
    tokenizer = Tokenizer(directory)
    compiler = GrammarCompiler(str(directory), vocab_size, eos)
    started = time.perf_counter()
    compiler.compile('start: "a"')
    first_ms = 1e3 * (time.perf_counter() - started)
    print(f"first compile, with the tokenizer of {vocab_size} ids: {first_ms:.0f} ms")
    rng = np.random.default_rng(0)
    for name, (schema, value) in CASES.items():
        lark = f"start: {json_rule(schema)}"
        started = time.perf_counter()
        state = compiler.compile(lark)
        compile_ms = 1e3 * (time.perf_counter() - started)
        masks, rows = _walk(Request("r", [1], 1, SamplingParams(), grammar=state), value, tokenizer, eos, rng)
        print(
            f"{name:15} compile {compile_ms:6.2f} ms   mask p50 {statistics.median(masks):5.0f} "
            f"p90 {np.percentile(masks, 90):5.0f} us   sampled row {statistics.median(rows):5.0f} us   "
            f"{len(masks)} tokens"
        )
    free = [_time_row(Request("f", [1], 1, SamplingParams()), vocab_size, rng) for _ in range(200)]
    print(f"sampled row without a grammar: {statistics.median(free):.0f} us")


def _walk(
    request: Request, value: object, tokenizer: Tokenizer, eos: frozenset[int], rng: np.random.Generator
) -> tuple[list[float], list[float]]:
    """Return the time of each mask and of each sampled row, us."""
    vocab_size = tokenizer.vocab_size
    masks, rows = [], []
    for token_id in tokenizer.encode(json.dumps(value, ensure_ascii=False), add_special_tokens=False):
        started = time.perf_counter()
        allowed = allowed_tokens([request], vocab_size)
        masks.append(1e6 * (time.perf_counter() - started))
        assert allowed is not None
        assert allowed[0][token_id >> 5] >> (token_id & 31) & 1, f"token {token_id} is not allowed"
        rows.append(_time_row(request, vocab_size, rng))
        request.token_ids.append(token_id)
    last = allowed_tokens([request], vocab_size)
    assert last is not None
    bits = np.flatnonzero(np.unpackbits(last[0].view(np.uint8), bitorder="little"))
    assert eos <= set(bits.tolist()), "the text ends the sentence"
    return masks, rows


def _time_row(request: Request, vocab_size: int, rng: np.random.Generator) -> float:
    logits = torch.from_numpy(rng.normal(size=(1, vocab_size)).astype(np.float32))
    started = time.perf_counter()
    Sampler(frozenset({2})).sample(logits, [request])
    return 1e6 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
