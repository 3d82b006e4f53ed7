"""The default model's directory against Transformers and against the tokenizer's known rules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from baton.conversion import bfloat16_bits, split_halves, weight_name
from baton.errors import ModelError

# Text and the ids that the model's own tokenizer gives.
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "What is the capital of France?",
    "\n\n1. First\n2. Second",
    "In 2024, 1234567890 people paid $3.14159 each.",
    "tabs\tand  double  spaces   and\r\nlines\n\n\n",
    "naïve café — “quotes” … 日本語 한국어 العربية 🦉👩‍👩‍👧",
    "def f(x):\n    return x**2  # 10 % of 7's",
    "don't can't we'll I'm THEY'RE",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a" * 300,
    "null\x00byte and \x7f",
]


def test_weight_names_are_those_of_llama() -> None:
    assert weight_name("blk.7.ffn_up.weight") == "model.layers.7.mlp.up_proj.weight"
    with pytest.raises(ModelError, match=r"blk\.7\.ffn_upward\.weight"):
        weight_name("blk.7.ffn_upward.weight")


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = np.array(
        [1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8 - 2**-20, 0.0], np.float32
    )
    expected = np.array([1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1 - 2**-7, 0.0], np.float32)
    widened = (bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(widened, expected)


def test_split_halves_undoes_interleaving() -> None:
    # Two heads of four rows each, numbered as Hugging Face orders them, then interleaved as GGUF does.
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    interleaved = rows[[0, 2, 1, 3, 4, 6, 5, 7]]
    np.testing.assert_array_equal(split_halves(interleaved, 2), rows)


def test_digits_are_split_singly(model_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    assert tokenizer.encode("\n\n1.").tokens == ["ĊĊ", "1", "."]
    assert tokenizer.encode(" 2024").tokens == ["Ġ", "2", "0", "2", "4"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_tokenizer(model_dir: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_control_tokens_are_single_and_skipped(model_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 49152
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1
    assert tokenizer.decode([1, 2, 0]) == ""


def test_config_describes_the_weights(model_dir: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    with safe_open(model_dir / "model.safetensors", framework="pt") as weights:
        assert len(weights.keys()) == 2 + 9 * config["num_hidden_layers"]
        embedding = weights.get_slice("model.embed_tokens.weight")
        assert embedding.get_shape() == [config["vocab_size"], config["hidden_size"]]
        assert embedding.get_dtype() == "BF16"
        key = weights.get_slice("model.layers.29.self_attn.k_proj.weight")
        assert key.get_shape() == [config["num_key_value_heads"] * config["head_dim"], config["hidden_size"]]


@pytest.mark.slow
def test_transformers_reads_the_directory_as_it_reads_the_gguf(model_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from baton.models import DEFAULT_MODEL, SOURCES, packaged_file

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    gguf = packaged_file(SOURCES[DEFAULT_MODEL])
    theirs = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    ours = model.state_dict()
    assert theirs.keys() == ours.keys() - {"lm_head.weight"}
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight.bfloat16().float(), rtol=0, atol=0, msg=name)

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    plain = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == plain.encode(text).ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    with torch.inference_mode():
        assert torch.isfinite(model(prompt).logits).all()
        answer = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False
        )
    assert "Paris" in tokenizer.decode(answer[0, prompt.shape[1] :])
