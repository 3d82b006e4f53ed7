"""GGUF files written by the gguf library, against the same weights from safetensors."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from engine.errors import ModelLoadError, UnsupportedArchitectureError
from engine.models.checkpoint import expected_shapes
from engine.models.load import ModelFiles, load_model_config, open_model
from tests.support.model_steps import ModelSteps
from tests.support.tiny_families import create_family

# Hugging Face's names to GGUF's, as llama.cpp's converter writes them.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
KINDS = {"llama2": "llama", "smollm2": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def interleave(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """llama.cpp's order of query and key rows."""
    halves = tensor.reshape(num_heads, 2, tensor.shape[0] // num_heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def write_gguf(path: Path, kind: str, files: ModelFiles, leave_out: str = "") -> Path:
    architecture = files.architecture
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(architecture.max_positions)
    writer.add_embedding_length(architecture.hidden_size)
    writer.add_block_count(architecture.num_layers)
    writer.add_feed_forward_length(architecture.intermediate_size)
    writer.add_head_count(architecture.num_heads)
    writer.add_head_count_kv(architecture.num_kv_heads)
    writer.add_key_length(architecture.head_dim)
    writer.add_layer_norm_rms_eps(architecture.norm_eps)
    writer.add_rope_freq_base(architecture.rope.theta)
    writer.add_eos_token_id(7)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    for name in expected_shapes(architecture):
        if name == leave_out:
            continue
        tensor = files.source.tensor(name)
        if kind == "llama" and ".q_proj." in name:
            tensor = interleave(tensor, architecture.num_heads)
        if kind == "llama" and ".k_proj." in name:
            tensor = interleave(tensor, architecture.num_kv_heads)
        writer.add_tensor(gguf_name(name), tensor.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp(request.param)
    create_family(request.param, directory)
    path = write_gguf(directory / "model.gguf", KINDS[request.param], open_model(str(directory)))
    return directory, path


def test_gguf_gives_the_same_logits(pair: tuple[Path, Path]) -> None:
    tokens = list(range(3, 60))
    logits = []
    for path in pair:
        steps = ModelSteps(str(path))
        logits += steps.step([(steps.request(tokens, len(tokens)), len(tokens))])
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)


def test_gguf_metadata(pair: tuple[Path, Path]) -> None:
    directory, path = pair
    ours, theirs = load_model_config(str(path)), load_model_config(str(directory))
    assert ours.eos_token_ids == {7}
    for field in ("num_layers", "vocab_size", "head_dim", "qkv_bias", "qk_norm", "tied_embeddings", "name"):
        assert getattr(ours, field) == getattr(theirs, field), field


def test_quantised_weights_are_dequantised(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    values = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("output.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    from engine.weights.gguf_file import GgufFile

    read = GgufFile(tmp_path / "q.gguf").tensor("output.weight")
    torch.testing.assert_close(read, torch.from_numpy(values), rtol=0, atol=0.02)


def test_missing_tensor_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    files = open_model(str(pair[0]))
    kind = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
    path = write_gguf(tmp_path / "m.gguf", kind[files.architecture.name], files, leave_out=name)
    with pytest.raises(ModelLoadError, match=r"m\.gguf: 1 missing tensor: model\.layers\.1\.mlp\.up_proj"):
        ModelSteps(str(path))


def test_truncated_file_is_an_error(pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole = pair[1].read_bytes()
    for keep in (0, 3, 100, len(whole) // 2):
        cut = tmp_path / f"cut{keep}.gguf"
        cut.write_bytes(whole[:keep])
        with pytest.raises(ModelLoadError, match=rf"cut{keep}\.gguf: truncated or not a GGUF file"):
            open_model(str(cut))


def test_other_architecture_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedArchitectureError, match=r"mamba is not supported.*llama, qwen2, qwen3"):
        open_model(str(tmp_path / "m.gguf"))
