"""From the text of a grammar to the states of requests."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from pathlib import Path

import llguidance

from engine.errors import InvalidRequestError
from engine.grammar.state import MAX_MASK_S, GrammarState

MAX_GRAMMAR_BYTES = 1 << 17
"""Of the text. The gateway takes half of it from clients, and adds what tools and reasoning need."""
_MAX_CACHED = 64
# A tenth of llguidance's own limit, with which some expressions take a minute until they hit it.
_LEXER_FUEL = 100_000


class GrammarCompiler:
    """Compiles grammars for one model; any thread may use it, the engine's should not.

    A compile takes 1 ms for a common JSON schema and 0.1 s at the limit of size; the first one
    reads the tokenizer as well (0.2 s for 49k tokens). What takes much longer runs out of fuel and
    is refused. The interpreter's lock is free meanwhile.
    """

    def __init__(self, model: str, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        """`model` is the model's path; only a directory can hold the tokenizer that grammars need."""
        self._path = Path(model) / "tokenizer.json"
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._limits = llguidance.LLParserLimits(
            initial_lexer_fuel=_LEXER_FUEL, step_lexer_fuel=_LEXER_FUEL, verbose_errors=False
        )
        # Guards everything below.
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[bytes, llguidance.LLMatcher] = OrderedDict()

    def compile(self, grammar: str) -> GrammarState:
        """Return the state before the first token.

        Args:
            grammar: Lark, or llguidance's JSON form of a grammar.
        Raises:
            InvalidRequestError: field "grammar": too large, not valid, or the model has no tokenizer
                that can be used.
        """
        text = grammar.encode()
        if len(text) > MAX_GRAMMAR_BYTES:
            raise _invalid(f"at most {MAX_GRAMMAR_BYTES} bytes, got {len(text)}")
        sha256 = hashlib.sha256(text).digest()
        with self._lock:
            matcher = self._compiled.get(sha256)
            if matcher is None:
                matcher = self._compiled[sha256] = self._compile(grammar)
            self._compiled.move_to_end(sha256)
            if len(self._compiled) > _MAX_CACHED:
                self._compiled.popitem(last=False)
            return GrammarState(matcher.deep_copy(), sha256, self._eos_token_ids)

    def _compile(self, grammar: str) -> llguidance.LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = self._read_tokenizer()
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        # An expression such as (a{1000}){1000} is built at its first mask; here nobody waits for it.
        started_s = time.thread_time()
        first = matcher.deep_copy()
        if not matcher.is_error():
            first.compute_bitmask()
        if first.is_error():
            raise _invalid(first.get_error().split("\n", 1)[0])
        if time.thread_time() - started_s > MAX_MASK_S:
            raise _invalid(f"too complex: the first mask took over {MAX_MASK_S:g} s")
        return matcher

    def _read_tokenizer(self) -> llguidance.LLTokenizer:
        if not self._path.is_file():
            raise _invalid(f"this model has no tokenizer: {self._path} is not there")
        try:
            return llguidance.LLTokenizer(
                self._path.read_text(encoding="utf-8"),
                n_vocab=self._vocab_size,
                eos_token=sorted(self._eos_token_ids),
            )
        except Exception as error:  # the library raises plain Exception
            raise _invalid(f"{self._path} cannot be used: {error}") from error


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError("grammar", message)
