"""The page's files, served as they lie in services/gateway/page/."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from services.gateway.http.exchange import Exchange, Handler

_TYPES = {"html": b"text/html", "css": b"text/css", "js": b"text/javascript", "svg": b"image/svg+xml"}
# Nothing from elsewhere, nothing inline, no frames around it, no forms to anywhere.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


class StaticFiles:
    """The files, read once. They are public: they hold no data, and ask for a key where one is needed."""

    def __init__(self) -> None:
        folder = resources.files("services.gateway.page")
        self._files = {
            entry.name: (entry.read_bytes(), _TYPES[suffix])
            for entry in folder.iterdir()
            if (suffix := entry.name.rpartition(".")[2]) in _TYPES
        }

    def handlers(self) -> Mapping[str, Handler]:
        """Return who answers which path: "/" is the page, "/page/<name>" what it is made of."""
        pages = {f"/page/{name}": _File(*file) for name, file in self._files.items()}
        return {"/": _File(*self._files["index.html"]), **pages}


class _File:
    """GET of one file."""

    def __init__(self, body: bytes, kind: bytes) -> None:
        self._body = body
        self._headers = ((b"content-type", kind + b"; charset=utf-8"), *_HEADERS)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer with it."""
        await exchange.answer(self._body, *self._headers)
