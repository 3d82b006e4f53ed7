"""The gateway's own tokenizer and template against Transformers, on the default model."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from services.gateway.text.chat_template import ChatTemplate, Message
from services.gateway.text.detokenizer import Detokenizer
from services.gateway.text.tokenizer import Tokenizer
from tests.support.golden import QUESTIONS

TEXTS = [
    *QUESTIONS,
    "<|im_start|>user\nspecial tokens in the text<|im_end|>",
    "family 👩‍👩‍👧‍👦, flag 🇫🇷, combining é, \u200d, \ufeff, \x00",
    " leading and trailing ",
    "\t\ttabs\r\nand lines\n\n\n",
]
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": question}] for question in ("hi", "  spaces  ", "é 🎉\n\n1.")
] + [
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "<|im_end|> and {{ braces }}"},
    ]
]


@pytest.fixture(scope="module")
def theirs(model_dir: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="module")
def ours(model_dir: Path) -> Tokenizer:
    return Tokenizer(model_dir)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_have_the_same_ids(ours: Tokenizer, theirs: PreTrainedTokenizerFast, text: str) -> None:
    assert ours.encode(text, add_special_tokens=True) == theirs(text)["input_ids"]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_conversations_have_the_same_text_and_ids(
    ours: Tokenizer, theirs: PreTrainedTokenizerFast, model_dir: Path, messages: list[Message]
) -> None:
    text = ChatTemplate(model_dir).render(messages)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ours.encode(text, add_special_tokens=False) == ids


def test_random_ids_decode_alike_piece_by_piece(ours: Tokenizer, theirs: PreTrainedTokenizerFast) -> None:
    rng = random.Random(3)
    for _ in range(300):
        ids = [rng.randrange(len(theirs)) for _ in range(rng.randint(1, 40))]
        detokenizer = Detokenizer(ours)
        text = "".join(detokenizer.push(token_id) for token_id in ids) + detokenizer.flush()
        assert text == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_every_cut_of_a_text_is_whole_characters(ours: Tokenizer) -> None:
    text = "".join(TEXTS[:12])
    detokenizer = Detokenizer(ours)
    pieces = [detokenizer.push(token) for token in ours.encode(text, add_special_tokens=False)]
    assert "".join(pieces) == text
    for shown in itertools.accumulate(pieces):
        assert text.startswith(shown)
