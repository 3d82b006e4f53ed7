"""The state of a grammar as it crosses in COMMIT."""

from __future__ import annotations

from baton.v1 import kv_pb2
from engine.request import Request


def grammar_state(request: Request) -> kv_pb2.GrammarState | None:
    """Return the state of a request as it is now; None: it has no grammar."""
    if request.grammar is None:
        return None
    answer = request.token_ids[request.num_prompt_tokens :]
    return kv_pb2.GrammarState(grammar_sha256=request.grammar.sha256, token_ids=answer)
