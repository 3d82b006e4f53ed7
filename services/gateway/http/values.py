"""The type of what goes out as JSON, and how it is written where a line is a message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]

# Neither JSON nor server-sent events take these for ends of lines, but many clients' readers of lines do.
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


# What json.dumps does to a text with ensure_ascii off.
_quote = json.encoder.encode_basestring


def dump_line(value: Json) -> str:
    """Return JSON that no reader of lines cuts."""
    return _one_line(json.dumps(value, ensure_ascii=False))


def quote_line(text: str) -> str:
    """Return what dump_line would of a text, sooner."""
    return _one_line(_quote(text))


def _one_line(text: str) -> str:
    return text if text.isascii() else text.translate(_LINE_ENDS)
