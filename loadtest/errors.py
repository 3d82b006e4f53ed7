"""Errors of the harness.

LoadTestError
├── UsageError       flags or a scenario contradict each other or are out of range
├── TraceError       a trace or a corpus cannot be read; names file and line
├── GeneratorError   a generator process died
└── RequestFailed    one request failed; .reason (it is counted, not fatal)
"""

from __future__ import annotations


class LoadTestError(Exception):
    """Base of everything that this package raises on purpose."""


class UsageError(LoadTestError):
    """Flags or a scenario contradict each other or are out of range."""


class TraceError(LoadTestError):
    """A trace or a corpus cannot be read."""


class GeneratorError(LoadTestError):
    """A generator process died."""


class RequestFailed(LoadTestError):  # noqa: N818 - it is an outcome, not a fault of ours
    """One request failed.

    Attributes:
        reason: what errors are counted by, such as "QUEUE_FULL" or "HTTP_503".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
