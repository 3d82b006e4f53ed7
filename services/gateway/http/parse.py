"""From the bytes of a body to a checked one; errors name the field and what was expected."""

from __future__ import annotations

import difflib
from typing import TypeVar

from pydantic import ValidationError

from services.common.errors import BatonError, ErrorReason
from services.gateway.http.schema import StreamOptions, Strict
from services.gateway.sampling import bad_field

Body = TypeVar("Body", bound=Strict)


def parse_body(cls: type[Body], body: bytes) -> Body:
    """Parse and check a body.

    Raises:
        BatonError: INVALID_ARGUMENT; names the field and what was expected.
    """
    try:
        parsed = cls.model_validate_json(body)
    except ValidationError as error:
        raise _explain(cls, error) from None
    for name, allowed in cls.neutral.items():
        value = getattr(parsed, name)
        if isinstance(value, dict):  # SDKs that write out what is not set
            value = {key: part for key, part in value.items() if part is not None}
        if value not in allowed:
            raise bad_field(name, cls.refusals.get(name, "this is not supported; leave the field out"))
    return parsed


def _explain(cls: type[Strict], error: ValidationError) -> BatonError:
    # Of the arms of a union, the one that got furthest into the value says most.
    first = max(error.errors(include_url=False, include_context=False), key=lambda item: len(item["loc"]))
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        return BatonError(ErrorReason.INVALID_ARGUMENT, f"body: {message}", field="body")
    field = _path(cls, first["loc"])
    if kind == "extra_forbidden":
        if elsewhere := cls.elsewhere.get(field):
            return bad_field(field, elsewhere)
        known = sorted(
            StreamOptions.model_fields if field.startswith("stream_options.") else cls.model_fields
        )
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return bad_field(field, f"unknown field; did you mean {near[0]!r}?" if near else "unknown field")
    return bad_field(field, message[0].lower() + message[1:])


def _path(cls: type[Strict], location: tuple[int | str, ...]) -> str:
    """Return "messages[0].content" of a location; names of union arms are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            path += f".{part}" if path else part
    return path or cls.__name__
