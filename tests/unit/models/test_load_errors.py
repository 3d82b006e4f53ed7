"""What is wrong with a model directory is said, with its file and field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError, UnsupportedArchitectureError
from engine.models.architecture import RopeKind
from engine.models.load import load_model_config, open_model
from tests.support.model_steps import ModelSteps
from tests.support.tiny_families import create_family


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    create_family("llama3", directory)
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))


def change_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    path = directory / "model.safetensors"
    tensors = dict(load_file(path)) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_path_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere: no such file or directory"):
        open_model(str(tmp_path / "nowhere"))


def test_path_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelLoadError, match=r"notes\.txt: neither a model directory nor a \.gguf file"):
        open_model(str(tmp_path / "notes.txt"))
    with pytest.raises(ModelLoadError, match=r"not a model directory: it has no config\.json"):
        open_model(str(tmp_path))


def test_unsupported_architecture_lists_those_supported(directory: Path) -> None:
    change_config(directory, architectures=["GPT2LMHeadModel"])
    with pytest.raises(
        UnsupportedArchitectureError, match=r"GPT2LMHeadModel is not supported.*Qwen3ForCausalLM"
    ):
        open_model(str(directory))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "absent"}, "hidden_size: is missing"),
        ({"hidden_size": "64"}, "hidden_size: must be a positive integer, got '64'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide 4"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not one of silu"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type: 'longrope' is not one of default"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: factor: is missing"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantized weights are not supported"),
    ],
)
def test_bad_config_field_is_named(directory: Path, changes: dict[str, object], message: str) -> None:
    change_config(directory, **changes)
    with pytest.raises(ModelLoadError, match=rf"config\.json: .*{message}"):
        open_model(str(directory))


def test_config_that_is_not_json(directory: Path) -> None:
    (directory / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config\.json: cannot be read as JSON"):
        open_model(str(directory))


def test_old_and_new_spelling_of_rope_agree(directory: Path) -> None:
    new = load_model_config(str(directory))
    assert new.rope.kind is RopeKind.LLAMA3
    scaling = json.loads((directory / "config.json").read_text())["rope_parameters"]
    theta = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    change_config(directory, rope_parameters="absent", rope_scaling=scaling, rope_theta=theta)
    assert load_model_config(str(directory)) == new


def test_end_tokens_come_from_the_generation_config_first(directory: Path) -> None:
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert load_model_config(str(directory)).eos_token_ids == {5, 6}
    (directory / "generation_config.json").unlink()
    assert load_model_config(str(directory)).eos_token_ids == {2}


def test_missing_tensors_are_named(directory: Path) -> None:
    change_weights(directory, **{"model.norm.weight": None, "model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(ModelLoadError, match=r"2 missing tensors: .*model\.norm\.weight") as error:
        ModelSteps(str(directory))
    assert "model.layers.1.mlp.up_proj.weight" in str(error.value)


def test_wrong_shape_is_named(directory: Path) -> None:
    change_weights(directory, **{"model.norm.weight": torch.ones(3)})
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight is \[3\], expected \[144\]"):
        ModelSteps(str(directory))


def test_no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: no such file"):
        open_model(str(directory))


def test_broken_safetensors(directory: Path) -> None:
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    for data, message in (
        (b"", "truncated or not a safetensors file"),
        (whole[:1000], "truncated or not a safetensors file"),
        (whole[:-1], "truncated: .* its header needs"),
        (b"\xff" * 100, "truncated or not a safetensors file"),
        ((3).to_bytes(8, "little") + b"{]}" + whole, "malformed safetensors header"),
    ):
        path.write_bytes(data)
        with pytest.raises(ModelLoadError, match=rf"model\.safetensors: {message}"):
            open_model(str(directory))


def test_index_that_leaves_the_directory(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../other.safetensors"}}))
    with pytest.raises(ModelLoadError, match="is not a file of this directory"):
        open_model(str(directory))
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}}))
    with pytest.raises(ModelLoadError, match=r"gone\.safetensors: no such file"):
        open_model(str(directory))


def test_weights_id_tells_fine_tunes_apart(directory: Path, saved: Path) -> None:
    assert open_model(str(directory)).source.weights_id == open_model(str(saved)).source.weights_id
    change_weights(directory, **{"model.norm.weight": torch.full((144,), 0.5)})
    assert open_model(str(directory)).source.weights_id != open_model(str(saved)).source.weights_id


def test_random_weights_follow_the_seed(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    name = "model.layers.0.mlp.up_proj.weight"
    drawn = []
    for seed in (1, 1, 2):
        (directory / "random_weights.json").write_text(json.dumps({"seed": seed}))
        source = open_model(str(directory)).source
        drawn.append((source.tensor(name), source.weights_id))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert drawn[0][1] == drawn[1][1]
    assert not torch.equal(drawn[0][0], drawn[2][0])
    assert drawn[0][1] != drawn[2][1]
