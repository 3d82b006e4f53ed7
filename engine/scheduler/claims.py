"""Which blocks are being computed right now: of prompts that come together one computes what they share.

A prompt whose next tokens another row is computing waits for that row's step, and then has
them from the prefix cache. It waits for rows alone, never for requests: a row that comes to
nothing holds up nobody longer than its step.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.kv.kv_manager import KVManager
from engine.request import Request
from engine.step import ScheduledRow


class Claims:
    """The blocks of one step's prompts, and of those of the steps under way."""

    def __init__(self, kv: KVManager, under_way: Iterable[ScheduledRow]) -> None:
        self._kv = kv
        self._names: set[bytes] = set()
        for request, start, num_tokens, _, _ in under_way:
            if num_tokens > 1:
                self._names.update(kv.names(request, start, start + num_tokens))

    def take(self, request: Request, num_tokens: int) -> bool:
        """Claim what the next tokens of a prompt fill.

        Returns:
            False: others compute at least half of them, so it waits, and nothing was claimed.
        """
        start = request.num_computed_tokens
        num_shared = 0
        for name in self._kv.adoptable_names(request, start + num_tokens):
            if name not in self._names:
                break
            num_shared += self._kv.unit
        if 2 * num_shared >= num_tokens:
            return False
        self._names.update(self._kv.names(request, start, start + num_tokens))
        return True
