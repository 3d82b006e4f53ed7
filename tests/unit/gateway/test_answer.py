from __future__ import annotations

import pytest

from baton.v1.sampling_pb2 import FinishReason, SamplingParams
from services.gateway.request import Request
from services.gateway.session.answer import Answer
from services.gateway.session.events import Token
from services.gateway.text.tokenizer import Tokenizer
from tests.support.byte_tokenizer import EOS, ids_of, write_byte_tokenizer

NONE = FinishReason.FINISH_REASON_UNSPECIFIED
STOP = FinishReason.FINISH_REASON_STOP
LENGTH = FinishReason.FINISH_REASON_LENGTH


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("model")))


def answer(tokenizer: Tokenizer, *stop: str, max_tokens: int = 100, min_tokens: int = 0) -> Answer:
    sampling = SamplingParams(max_tokens=max_tokens, min_tokens=min_tokens)
    request = Request("r", "k", [1], None, frozenset(), sampling, stop, 0, "", 0.0, 1.0, 0.0)
    return Answer(request, tokenizer)


def tokens(text: str, last: FinishReason = NONE) -> list[Token]:
    ids = ids_of(text)
    return [Token(token_id, None, last if i == len(ids) - 1 else NONE) for i, token_id in enumerate(ids)]


def test_text_may_lag_behind_tokens(tokenizer: Tokenizer) -> None:
    made = answer(tokenizer)
    deltas = [made.push([token]) for token in tokens("é!")]
    assert [delta.text for delta in deltas] == ["", "é", "!"]
    assert [list(delta.token_ids) for delta in deltas] == [[token] for token in ids_of("é!")]


def test_tokens_after_a_stop_string_are_dropped(tokenizer: Tokenizer) -> None:
    made = answer(tokenizer, "lo")
    delta = made.push(tokens("hello world"))
    assert (delta.text, made.token_ids) == ("hel", ids_of("hello"))
    assert (made.finish_reason, made.matched_stop) == (STOP, "lo")


def test_held_text_comes_out_at_the_end(tokenizer: Tokenizer) -> None:
    made = answer(tokenizer, "world")
    assert made.push(tokens("hello wor")).text == "hello "
    assert made.push(tokens("t", LENGTH)).text == "wort"
    assert made.finish_reason == LENGTH


def test_an_unfinished_start_of_a_stop_string_comes_out_at_the_end(tokenizer: Tokenizer) -> None:
    made = answer(tokenizer, "world")
    assert made.push(tokens("hello wor", LENGTH)).text == "hello wor"


def test_an_end_token_has_no_text(tokenizer: Tokenizer) -> None:
    made = answer(tokenizer)
    assert made.push([*tokens("hi"), Token(EOS, None, STOP)]).text == "hi"
    stopped_by_letter = answer(tokenizer)
    assert stopped_by_letter.push(tokens("hi!", STOP)).text == "hi"
    assert stopped_by_letter.token_ids == ids_of("hi!")


def test_half_a_character_at_the_end_shows_as_one_mark(tokenizer: Tokenizer) -> None:
    made = answer(tokenizer)
    (first, *_) = tokens("é")
    assert made.push([Token(first.token_id, None, LENGTH)]).text == "�"


def test_max_tokens_ends_it_whatever_the_worker_says(tokenizer: Tokenizer) -> None:
    made = answer(tokenizer, max_tokens=3)
    assert made.push(tokens("hello")).text == "hel"
    assert made.finish_reason == LENGTH


def test_a_stop_string_in_the_last_token_wins_over_length(tokenizer: Tokenizer) -> None:
    made = answer(tokenizer, "lo", max_tokens=5)
    made.push(tokens("hello", LENGTH))
    assert (made.finish_reason, made.matched_stop) == (STOP, "lo")


def test_stop_strings_do_not_count_before_min_tokens(tokenizer: Tokenizer) -> None:
    made = answer(tokenizer, "l", min_tokens=4)
    assert made.push(tokens("hello hello")).text == "hello he"
