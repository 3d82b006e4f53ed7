"""How the tokens of an only session reach the client's connection without waking the request's task."""

from __future__ import annotations

from collections.abc import Callable

from services.gateway.http.protocol import Chunks
from services.gateway.http.values import quote_line


class EventOutlet:
    """Sends what `show` makes of a token (a session's Outlet).

    Args:
        show: given a token's text and id, returns server-sent events; may be none.
    """

    def __init__(self, chunks: Chunks, show: Callable[[str, int], bytes]) -> None:
        self._chunks = chunks
        self._show = show

    @property
    def is_free(self) -> bool:
        """Whether the next one would go out at once."""
        return self._chunks.is_free

    def put(self, text: str, token_id: int) -> None:
        """Send a token."""
        shown = self._show(text, token_id)
        if shown:
            self._chunks.write(shown)


class TextOutlet:
    """Sends text alone, in events that differ in nothing else; for most answers, and the quicker.

    Args:
        before, after: what is around the text, which is a JSON string, in each event.
    """

    __slots__ = ("_after", "_before", "_chunks")

    def __init__(self, chunks: Chunks, before: str, after: str) -> None:
        self._chunks = chunks
        self._before = before.encode()
        self._after = after.encode()

    @property
    def is_free(self) -> bool:
        """Whether the next one would go out at once."""
        return self._chunks.is_free

    def put(self, text: str, token_id: int) -> None:
        """Send a token's text, if it has any."""
        if text:
            self._chunks.write(b"%b%b%b" % (self._before, quote_line(text).encode(), self._after))
