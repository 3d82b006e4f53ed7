"""Grammars on the engine's side: which tokens may come next, and what an answer under them looks like."""

import contextlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import GrammarError, InvalidRequestError
from engine.events import RequestFailed
from engine.grammar.bitmask import allowed_tokens, forbid, num_words
from engine.grammar.compiler import MAX_GRAMMAR_BYTES, GrammarCompiler
from engine.request import Request
from engine.sampler.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.step import SampledToken, StepResult
from engine.validation import Limits
from tests.support.byte_tokenizer import EOS, ids_of, text_of, write_byte_tokenizer
from tests.support.engine_builders import CONTEXT_LENGTH, create_group, create_request, create_scheduler

# Rows beyond the tokenizer's own, and no multiple of 32.
VOCAB_SIZE = 259 + 13
JSON = """start: obj
obj: "{" [pair (", " pair)*] "}"
pair: STRING ": " (STRING | /-?(0|[1-9][0-9]*)/ | obj)
STRING: /"[^"\\\\\\x00-\\x1f]{0,6}"/"""


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    directory = write_byte_tokenizer(tmp_path_factory.mktemp("model"))
    return GrammarCompiler(str(directory), VOCAB_SIZE, frozenset({EOS}))


def constrained(compiler: GrammarCompiler, grammar: str, **sampling: float) -> Request:
    request = create_request([5, 6, 7], sampling=SamplingParams(**{"max_tokens": 400, **sampling}))
    request.grammar = compiler.compile(grammar)
    return request


def allowed_ids(request: Request) -> set[int]:
    words = allowed_tokens([request], VOCAB_SIZE)
    assert words is not None
    assert words.shape == (1, num_words(VOCAB_SIZE))
    bits = np.unpackbits(words[0].view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def test_the_mask_is_what_the_grammar_says(compiler: GrammarCompiler) -> None:
    request = constrained(compiler, 'start: "ab" | "a" /[0-9]+/')
    assert allowed_ids(request) == set(ids_of("a"))
    request.token_ids += ids_of("a")
    assert allowed_ids(request) == set(ids_of("b0123456789"))
    assert allowed_ids(request) == set(ids_of("b0123456789")), "asking twice changes nothing"
    request.token_ids += ids_of("1")
    assert allowed_ids(request) == {*ids_of("0123456789"), EOS}
    ended = constrained(compiler, 'start: "ab"')
    ended.token_ids += ids_of("ab")
    assert allowed_ids(ended) == {EOS}, "at the end of the sentence only the end may follow"


def test_a_state_built_anew_from_the_tokens_is_the_same(compiler: GrammarCompiler) -> None:
    rng = np.random.default_rng()
    request = constrained(compiler, JSON)
    for _ in range(60):
        ids = allowed_ids(request)
        resumed = constrained(compiler, JSON)
        resumed.token_ids = list(request.token_ids)
        assert allowed_ids(resumed) == ids
        if ids == {EOS}:
            break
        request.token_ids.append(int(rng.choice(sorted(ids - {EOS}))))


def test_rows_without_a_grammar_allow_all(compiler: GrammarCompiler) -> None:
    free = create_request([1, 2])
    assert allowed_tokens([free], VOCAB_SIZE) is None
    words = allowed_tokens([free, constrained(compiler, 'start: "x"'), free], VOCAB_SIZE)
    assert words is not None
    row = np.zeros(VOCAB_SIZE, dtype=np.float32)
    forbid(row, words[0])
    assert np.isfinite(row).all()
    forbid(row, words[1])
    assert np.flatnonzero(np.isfinite(row)).tolist() == ids_of("x")


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.2}])
def test_whatever_the_model_says_the_answer_is_a_sentence(
    compiler: GrammarCompiler, temperature: float, truncation: dict[str, float]
) -> None:
    rng = np.random.default_rng()
    sampler = Sampler(frozenset({EOS}))
    requests = [
        constrained(compiler, JSON, temperature=temperature, seed=int(rng.integers(2**63)), **truncation)
        for _ in range(8)
    ]
    running = list(requests)
    for _ in range(400):
        logits = rng.normal(size=(len(running), VOCAB_SIZE)).astype(np.float32) * 5
        # As a model that has said enough, so that sentences end.
        logits[:, ids_of('}"')] += 12
        before = logits.copy()
        drawn = sampler.sample(torch.from_numpy(logits), running)
        assert (logits == before).all(), "logits are left as they are"
        for request, token in zip(running, drawn, strict=True):
            request.token_ids.append(token.token_id)
        running = [request for request in running if request.token_ids[-1] != EOS]
        if not running:
            break
    assert not running, "every answer ended by itself"
    for request in requests:
        assert isinstance(json.loads(text_of(request.token_ids[3:])), dict)


def test_an_answer_outside_the_grammar_is_an_error_and_ends(compiler: GrammarCompiler) -> None:
    request = constrained(compiler, 'start: "ab"')
    request.token_ids += ids_of("ax")
    assert allowed_ids(request) == {EOS}
    assert isinstance(request.grammar.error, GrammarError)
    assert "token 1 of the answer" in str(request.grammar.error)
    assert allowed_ids(request) == {EOS}, "it stays so"


def test_a_mask_that_takes_too_long_ends_its_request(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.grammar.state.MAX_MASK_S", -1.0)
    request = constrained(compiler, 'start: "ab"')
    assert allowed_ids(request) == {EOS}
    assert "too complex" in str(request.grammar.error)


def test_a_grammar_whose_library_raises_ends_its_request(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = constrained(compiler, 'start: "ab"'), constrained(compiler, 'start: "ab"')
    monkeypatch.setattr(bad.grammar, "_matcher", None)
    words = allowed_tokens([bad, good], VOCAB_SIZE)
    assert words is not None
    assert isinstance(bad.grammar.error, GrammarError)
    assert "AttributeError" in str(bad.grammar.error)
    assert good.grammar.error is None
    row = np.zeros(VOCAB_SIZE, dtype=np.float32)
    forbid(row, words[1])
    assert np.flatnonzero(np.isfinite(row)).tolist() == ids_of("a")


@pytest.mark.parametrize("regex", ["(a{1000}){1000}", "a{1000000}", ".*(a|b).{500}x", "(.*a){50}"])
def test_no_expression_takes_the_engine_for_long(compiler: GrammarCompiler, regex: str) -> None:
    started_s = time.thread_time()
    with contextlib.suppress(InvalidRequestError):  # refused at once is as good
        request = constrained(compiler, f"start: /{regex}/")
        for _ in range(5):
            request.token_ids += ids_of("a")
            allowed_ids(request)
    assert time.thread_time() - started_s < 3.0


def test_the_scheduler_fails_such_a_request_alone(compiler: GrammarCompiler) -> None:
    scheduler = create_scheduler()
    bad, good = constrained(compiler, 'start: "xy"'), constrained(compiler, 'start: "xy"')
    for request in (bad, good):
        scheduler.add(request)
    output = scheduler.schedule()
    assert len(output.rows) == 2
    bad.grammar.error = GrammarError("grammar: a dead end")
    sampled = {request.request_id: SampledToken(ids_of("x")[0]) for request in (bad, good)}
    scheduler.commit(output, StepResult(sampled))
    failed = [event for event in scheduler.take_events() if isinstance(event, RequestFailed)]
    assert [(event.request_id, type(event.error)) for event in failed] == [(bad.request_id, GrammarError)]
    assert scheduler.request_ids == (good.request_id,)
    scheduler.check_invariants()


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: nowhere", "nowhere"),
        ("start: /[/", "regex"),
        ("{", "grammar"),
        ("", "grammar"),
        ("start: " + '"a" ' * MAX_GRAMMAR_BYTES, f"at most {MAX_GRAMMAR_BYTES} bytes"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(
    compiler: GrammarCompiler, grammar: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(message)) as caught:
        compiler.compile(grammar)
    assert caught.value.field == "grammar"
    assert "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer_takes_no_grammar(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        GrammarCompiler(str(tmp_path), 10, frozenset({2})).compile('start: "a"')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidRequestError, match="cannot be used"):
        GrammarCompiler(str(tmp_path), 10, frozenset({2})).compile('start: "a"')


def test_what_says_otherwise_where_the_answer_ends_is_refused(compiler: GrammarCompiler) -> None:
    limits = Limits(VOCAB_SIZE, CONTEXT_LENGTH, (create_group(),), 64)
    limits.check(constrained(compiler, 'start: "ab"'))
    for sampling in ({"ignore_eos": True}, {"min_tokens": 3}):
        with pytest.raises(InvalidRequestError, match="grammar"):
            limits.check(constrained(compiler, 'start: "ab"', **sampling))
