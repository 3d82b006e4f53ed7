"""The model's tokenizer: text to ids, and the bytes that each id stands for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

# Longer texts are encoded on a thread, so that other streams do not wait for them.
INLINE_CHARS = 2048

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SENTENCE_PIECE = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


class Tokenizer:
    """A tokenizer.json.

    Attributes:
        vocab_size: ids are below this; a model may have rows for more.
    Raises:
        ValueError: the file is missing, corrupt, or has a decoder that is not supported; names it.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"model: {directory} has no tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            decoder = json.loads(path.read_text(encoding="utf-8")).get("decoder")
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"model: {path} cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._is_byte_level = _is_byte_level(decoder, path)
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str | None] = {}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Turn text into ids.

        Args:
            add_special_tokens: put in what the tokenizer's post-processor adds, such as a leading bos.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    async def encode_async(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Do as `encode`, on a thread if the text is long."""
        if len(text) <= INLINE_CHARS:
            return self.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self.encode, text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids; control tokens have none, and U+FFFD stands for invalid bytes."""
        known = [self.token_bytes(token_id) for token_id in token_ids if not self.is_special(token_id)]
        return b"".join(known).decode(errors="replace")

    def id_of(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary spells it; None: it is not there."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def is_special(self, token_id: int) -> bool:
        """Tell whether the id is a control token, which has no text."""
        return token_id in self._special

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token, part of a character perhaps; empty if the id is unknown."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._tokenizer.id_to_token(token_id)
            known = self._bytes[token_id] = b"" if token is None else self._decode_token(token)
        return known

    def whole_text(self, token_id: int) -> str | None:
        """Return the text of a token that is whole characters; None: it is not, or is a control token."""
        try:
            return self._texts[token_id]
        except KeyError:
            text = None
            if not self.is_special(token_id):
                with contextlib.suppress(UnicodeDecodeError):
                    text = self.token_bytes(token_id).decode()
            self._texts[token_id] = text
            return text

    def _decode_token(self, token: str) -> bytes:
        if self._is_byte_level:
            try:
                return bytes(_BYTE_OF_CHAR[char] for char in token)
            except KeyError:  # an added token is plain text
                return token.encode()
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _is_byte_level(decoder: dict[str, object] | None, path: Path) -> bool:
    kinds = _decoder_kinds(decoder)
    if kinds == {"ByteLevel"}:
        return True
    if kinds and kinds <= _SENTENCE_PIECE:
        return False
    raise ValueError(
        f"model: {path} has decoder {sorted(kinds)}; supported are ByteLevel and the SentencePiece kinds "
        f"{sorted(_SENTENCE_PIECE)}"
    )


def _decoder_kinds(decoder: dict[str, object] | None) -> set[str]:
    if decoder is None:
        return set()
    if decoder["type"] != "Sequence":
        return {str(decoder["type"])}
    parts = decoder["decoders"]
    assert isinstance(parts, list)
    return set().union(*(_decoder_kinds(part) for part in parts))


def _byte_of_char() -> dict[str, int]:
    """Return the inverse of GPT-2's map of bytes to printable characters.

    Source: Radford et al. 2019, encoder.py, bytes_to_unicode.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    chars = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    chars.update((chr(256 + index), byte) for index, byte in enumerate(others))
    return chars


_BYTE_OF_CHAR = _byte_of_char()
