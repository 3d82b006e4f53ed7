"""Logs: one JSON object a line on standard error, with the request's and its trace's id where there is one.

Prompts and answers are never logged.
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import time

from services.common.tracing import current_trace_id

request_id_var: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")

LogValue = str | int | float | bool | None


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: ts (RFC 3339, UTC), level, service, logger, message, fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, LogValue] = {
            "ts": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields: dict[str, LogValue] = getattr(record, "fields", {})
        request_id = fields.get("request_id") or request_id_var.get()
        if request_id:
            line["request_id"] = request_id
        trace_id = fields.get("trace_id") or current_trace_id()
        if trace_id:
            line["trace_id"] = trace_id
        line.update((key, value) for key, value in fields.items() if key not in ("request_id", "trace_id"))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def setup_logs(service: str, level: str = "info") -> None:
    """Send all logs of this process to standard error as JSON lines; replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def log(logger: logging.Logger, level: int, message: str, **fields: LogValue) -> None:
    """Log a message with fields; `request_id` among them wins over the context's."""
    if logger.isEnabledFor(level):
        logger.log(level, message, extra={"fields": fields})
