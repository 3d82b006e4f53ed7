"""Whether an answer is the greedy one of Hugging Face Transformers, and prompts to ask."""

from __future__ import annotations

import inspect
import json
import logging.handlers
import random
import subprocess
import typing
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

NEAR_TIE = 1e-4

QUESTIONS = [
    "a",
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "用一句话介绍一下你自己。",
    "Write a haiku about GPUs 🎉🚀 and the sea.",
    "def fibonacci(n):\n    ",
    "1, 1, 2, 3, 5, 8, 13,",
    "\n\n1. First item\n2. Second item\n3.",
    "Translate to French: The weather is nice today.",
    "Ωμέγα καὶ ἄλφα; العربية; हिन्दी",
    'JSON: {"name": "Ada", "born": 1815, "field":',
    "The quick brown fox jumps over the lazy dog. " * 3,
]


def varied_prompts(model_dir: Path, count: int = 50, max_tokens: int = 1500) -> list[list[int]]:
    """Return prompts of 1 to `max_tokens` tokens; some share long prefixes, some end on block edges."""
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    modules = [inspect, json, subprocess, typing, logging.handlers, random]
    text = "\n".join(inspect.getsource(module) for module in modules)
    corpus = tokenizer.encode(text).ids
    rng = random.Random(7)
    prompts = [tokenizer.encode(question).ids for question in QUESTIONS]
    prompts += [
        corpus[at : at + n] for at, n in ((0, 1), (50, 15), (90, 16), (140, 17), (200, 64), (300, 128))
    ]
    shared = corpus[4000:4800]
    prompts += [shared[:n] + corpus[at : at + 9] for n, at in ((320, 10), (320, 900), (800, 40), (800, 1200))]
    prompts += [corpus[9000 : 9000 + n] for n in (1024, max_tokens)]
    while len(prompts) < count:
        length = int(2 ** rng.uniform(0, 9.5))
        start = rng.randrange(len(corpus) - length)
        prompts.append(corpus[start : start + length])
    return [prompt[:max_tokens] for prompt in prompts[:count]]


class GreedyReference:
    """Transformers in float32, asked whether an answer is its own greedy one.

    One pass over prompt and answer gives the logits at every position. If each token is the most
    likely one after those before it, then by induction the answer is what `generate` gives; that
    costs a prefill instead of a step a token. `generate` itself is there to check just that.
    """

    def __init__(self, model_dir: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0
        self._checked: dict[tuple[tuple[int, ...], tuple[int, ...]], str | None] = {}

    def check(self, prompt: Sequence[int], tokens: Sequence[int]) -> str | None:
        """Fail unless `tokens` is the greedy answer; a difference at a near-tie is returned as text."""
        key = (tuple(prompt), tuple(tokens))
        if key not in self._checked:
            self._checked[key] = self._check(*key)
        return self._checked[key]

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Return the greedy answer, past end-of-sequence tokens."""
        ids = torch.tensor([list(prompt)])
        out = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens
        )
        return list(out[0, len(prompt) :].tolist())

    @torch.inference_mode()
    def _check(self, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> str | None:
        ids = torch.tensor([[*prompt, *tokens[:-1]]])
        logits = self._model(ids, logits_to_keep=len(tokens)).logits[0]
        best = logits.max(dim=-1).values
        notes = []
        for at, token in enumerate(tokens):
            gap = float(best[at] - logits[at, token])
            assert gap < NEAR_TIE, f"{len(prompt)} tokens in: token {at} is {token}, {gap:g} below the best"
            if token != int(logits[at].argmax()):
                notes.append(f"near-tie at token {at} of a prompt of {len(prompt)}: gap {gap:g}")
        return "; ".join(notes) or None
