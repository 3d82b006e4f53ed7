"""Greedy answers of Hugging Face Transformers, and how ours are compared with them."""

from __future__ import annotations

import inspect
import json
import logging.handlers
import random
import subprocess
import typing
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Reference:
    """What Transformers answers to one prompt: tokens, and the gap of its two best logits at each."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    gaps: tuple[float, ...]


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


def reference_answers(model_dir: Path, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Reference]:
    """Answer each prompt alone, greedily, in float32, past end-of-sequence tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    answers = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num_tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = [logits[0].topk(2).values for logits in out.logits]
        answers.append(
            Reference(
                prompt=tuple(prompt),
                tokens=tuple(out.sequences[0, len(prompt) :].tolist()),
                gaps=tuple(float(top[0] - top[1]) for top in best),
            )
        )
    return answers


def assert_same(reference: Reference, tokens: Sequence[int]) -> str | None:
    """Compare token for token; a difference is allowed at a near-tie only, and is returned as text."""
    assert len(tokens) == len(reference.tokens), f"{len(tokens)} tokens, not {len(reference.tokens)}"
    for at, (ours, theirs) in enumerate(zip(tokens, reference.tokens, strict=True)):
        if ours != theirs:
            gap = reference.gaps[at]
            assert gap < NEAR_TIE, (
                f"{len(reference.prompt)} tokens in: token {at} is {ours}, not {theirs}; gap {gap:g}"
            )
            return f"near-tie at token {at} of a prompt of {len(reference.prompt)}: gap {gap:g}"
    return None
