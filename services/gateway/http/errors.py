"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import math

from services.common.errors import BatonError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


def error_body(error: BatonError) -> bytes:
    """Return the JSON of an error."""
    body = {
        "message": error.message,
        "type": _TYPES.get(error.http_code, "server_error"),
        "param": error.field,
        "code": error.reason.name.lower(),
    }
    return json.dumps({"error": body}, ensure_ascii=False).encode()


def error_headers(error: BatonError) -> list[tuple[bytes, bytes]]:
    """Return the headers of an error's answer: its type, and Retry-After where a hint is given."""
    headers = [(b"content-type", b"application/json")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
    return headers
