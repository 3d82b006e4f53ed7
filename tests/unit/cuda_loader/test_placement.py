"""Weights in one arena: the same offsets for the same model, whoever fills them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.backends.cuda.errors import ArenaFullError
from engine.backends.cuda.placement import Arena
from engine.models.load import open_model
from engine.weights.shape_source import ShapeSource
from tests.support.tiny_families import create_family


def test_the_same_shapes_lie_at_the_same_places() -> None:
    memory = torch.zeros(4096, dtype=torch.uint8)
    first, second = Arena(memory), Arena(memory)
    shapes = [torch.Size((3, 5)), torch.Size((7,)), torch.Size((2, 8, 4))]
    for value, shape in enumerate(shapes):
        first.place(shape, torch.bfloat16).fill_(value)
    for value, shape in enumerate(shapes):
        assert (second.place(shape, torch.bfloat16) == value).all()
    assert first.used_bytes == second.used_bytes
    with pytest.raises(ArenaFullError, match="has 4096 bytes"):
        first.place(torch.Size((4096,)), torch.float32)


def test_a_meta_arena_measures() -> None:
    arena = Arena(torch.empty(1 << 40, dtype=torch.uint8, device="meta"))
    assert arena.place(torch.Size((1000, 1000)), torch.bfloat16).is_meta
    assert arena.used_bytes >= 2_000_000


def test_shapes_of_a_source_without_its_numbers(tmp_path: Path) -> None:
    create_family("qwen3", tmp_path)
    source = open_model(str(tmp_path)).source
    shapes = ShapeSource(source)
    name = "model.layers.0.self_attn.q_norm.weight"
    assert shapes.weights_id == source.weights_id
    assert shapes.tensor(name).is_meta
    assert shapes.tensor(name).shape == source.tensor(name).shape
    assert shapes.shape("nothing") is None
