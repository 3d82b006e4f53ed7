"""A model directory with text files only: a byte-level tokenizer whose ids are bytes, and a chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NUM_SPECIAL = 3
VOCAB_SIZE = NUM_SPECIAL + 256
EOS = 2

_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def write_byte_tokenizer(
    directory: Path,
    *,
    template: str = _TEMPLATE,
    special_tokens: Sequence[str] = (),
    vocab_size: int = VOCAB_SIZE,
) -> Path:
    """Write the files; token id = 3 + byte, after <pad>, <s> and </s>, before more special tokens.

    Returns the directory.

    Args:
        vocab_size: words fill the vocabulary up to this, so that every id of a larger model has a text.
    """
    chars = _chars()
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, **{chars[byte]: NUM_SPECIAL + byte for byte in range(256)}}
    vocab |= {f"w{number}": number for number in range(VOCAB_SIZE, vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in ("<pad>", "<s>", "</s>", *special_tokens)]
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (directory / "chat_template.jinja").write_text(template)
    return directory


def ids_of(text: str) -> list[int]:
    """Return the ids of a text."""
    return [NUM_SPECIAL + byte for byte in text.encode()]


def text_of(token_ids: list[int]) -> str:
    """Return the text of ids."""
    return bytes(token - NUM_SPECIAL for token in token_ids if token >= NUM_SPECIAL).decode(errors="replace")


def _chars() -> dict[int, str]:
    """Return the character that byte-level tokenizers write for each byte."""
    # The pre-tokenizer is the authority; every byte but those of UTF-8's lead range occurs in some character.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [char for char in alphabet if ord(char) < 256]
    others = iter(char for char in alphabet if ord(char) >= 256)
    taken = {ord(char) for char in printable}
    return {byte: chr(byte) if byte in taken else next(others) for byte in range(256)}
