from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from services.gateway.text.detokenizer import Detokenizer
from services.gateway.text.tokenizer import Tokenizer as GatewayTokenizer
from tests.support.byte_tokenizer import EOS, NUM_SPECIAL, write_byte_tokenizer

TEXTS = [
    "plain text, 1.5 of it",
    "emoji 🎉🚀 and a family 👩‍👩‍👧‍👦 and a flag 🇫🇷",
    "中文 日本語 한국어",
    "combining é ü",
    "Ωμέγα العربية हिन्दी",
    "\x00\x7f\u2028",
]


def detokenize(tokenizer: GatewayTokenizer, ids: list[int]) -> tuple[list[str], str]:
    detokenizer = Detokenizer(tokenizer)
    parts = [detokenizer.push(token_id) for token_id in ids]
    return parts, "".join(parts) + detokenizer.flush()


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> tuple[GatewayTokenizer, Tokenizer]:
    directory = write_byte_tokenizer(tmp_path_factory.mktemp("byte_level"))
    return GatewayTokenizer(directory), Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> tuple[GatewayTokenizer, Tokenizer]:
    """A BPE with byte fallback, as Llama 2 and Mistral have."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    vocab |= {token: len(vocab) + i for i, token in enumerate(["▁", *"abcdefghijklmnopqrstuvwxyz", "中"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    directory = tmp_path_factory.mktemp("sentence_piece")
    tokenizer.save(str(directory / "tokenizer.json"))
    return GatewayTokenizer(directory), tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_gives_whole_characters_once(
    byte_level: tuple[GatewayTokenizer, Tokenizer], text: str
) -> None:
    tokenizer, library = byte_level
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text.encode())
    parts, whole = detokenize(tokenizer, ids)
    assert whole == text == library.decode(ids)
    assert not any("�" in part for part in parts)


@given(st.lists(st.integers(0, 255), max_size=40))
def test_byte_level_equals_the_full_decode_of_any_bytes(
    byte_level: tuple[GatewayTokenizer, Tokenizer], values: list[int]
) -> None:
    tokenizer, library = byte_level
    ids = [NUM_SPECIAL + value for value in values]
    assert detokenize(tokenizer, ids)[1] == library.decode(ids)


def test_special_tokens_have_no_text_even_inside_a_character(
    byte_level: tuple[GatewayTokenizer, Tokenizer],
) -> None:
    tokenizer, library = byte_level
    ids = tokenizer.encode("é", add_special_tokens=False)
    ids = [1, ids[0], EOS, ids[1], EOS]
    assert detokenize(tokenizer, ids) == (["", "", "", "é", ""], "é")
    assert library.decode(ids, skip_special_tokens=True) == "é"


def test_unfinished_character_is_held_and_flushed(byte_level: tuple[GatewayTokenizer, Tokenizer]) -> None:
    tokenizer, _ = byte_level
    ids = tokenizer.encode("a🎉", add_special_tokens=False)[:-1]
    parts, whole = detokenize(tokenizer, ids)
    assert "".join(parts) == "a"
    assert whole == "a�"


@pytest.mark.parametrize("text", ["hello world", "a 中 b", "tab 🎉 x", "日本 中"])
def test_byte_fallback_gives_whole_characters_once(
    sentence_piece: tuple[GatewayTokenizer, Tokenizer], text: str
) -> None:
    tokenizer, library = sentence_piece
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts, whole = detokenize(tokenizer, ids)
    assert whole == text == library.decode(ids)
    assert not any("�" in part for part in parts)


def test_leading_space_of_an_answer_is_kept(sentence_piece: tuple[GatewayTokenizer, Tokenizer]) -> None:
    tokenizer, _ = sentence_piece
    assert detokenize(tokenizer, tokenizer.encode(" a", add_special_tokens=False))[1] == " a"


def test_unknown_ids_have_no_text(byte_level: tuple[GatewayTokenizer, Tokenizer]) -> None:
    assert detokenize(byte_level[0], [5000])[1] == ""


def test_other_decoders_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"WordPiece.*supported are ByteLevel"):
        GatewayTokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        GatewayTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        GatewayTokenizer(tmp_path)
