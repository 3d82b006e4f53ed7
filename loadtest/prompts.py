"""What a prompt says: random token ids, or text cut from a corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loadtest.errors import TraceError
from loadtest.plan import Request
from loadtest.scenario import Scenario

Prompt = tuple[int, ...] | str

_BLOCK, _TAIL, _TEXT = 4, 5, 6  # streams of draws
_MOST_CORPUS_BYTES = 64 << 20


class Prompts:
    """Makes the prompts of a scenario.

    Raises:
        TraceError: the corpus cannot be read, or holds too little.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._text = _read_corpus(Path(scenario.corpus)) if scenario.corpus else ""

    def prompt(self, request: Request) -> Prompt:
        """Return the prompt of a request: `input_tokens` ids, or about that many tokens of text.

        Blocks that share a hash id share their tokens, so the leading ones are real shared prefixes.
        """
        if self._text:
            return self._cut(request)
        blocks = [self._ids(_BLOCK, name, request.block_tokens) for name in request.hash_ids]
        named = sum(map(len, blocks))
        if named < request.input_tokens:
            blocks.append(self._ids(_TAIL, request.stream, request.input_tokens - named))
        return tuple(np.concatenate(blocks)[: request.input_tokens].tolist())

    def _ids(self, stream: int, key: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        scenario = self._scenario
        random = np.random.default_rng([scenario.seed, stream, key])
        return random.integers(scenario.first_token, scenario.last_token + 1, size)

    def _cut(self, request: Request) -> str:
        size = max(1, round(request.input_tokens * self._scenario.chars_per_token))
        random = np.random.default_rng([self._scenario.seed, _TEXT, request.stream])
        start = int(random.integers(0, len(self._text)))
        text = self._text[start : start + size]
        while len(text) < size:
            text += self._text[: size - len(text)]
        return text


def _read_corpus(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    parts: list[str] = []
    size = 0
    for file in files:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise TraceError(f"corpus {file}: {error.strerror}") from error
        if b"\0" in data:  # an index beside the texts
            continue
        parts.append(data.decode("utf-8", "replace"))
        size += len(data)
        if size > _MOST_CORPUS_BYTES:
            break
    text = "\n".join(parts)
    if len(text) < 1000:
        raise TraceError(f"corpus {path}: fewer than 1000 characters of text")
    return text
