"""Errors of the engine.

EngineError
├── InvalidRequestError      a field of a request is out of range (bad input)
├── ModelLoadError           a model directory or file cannot be used (bad input)
│   └── UnsupportedArchitectureError
├── OutOfBlocksError         too few free KV blocks; nothing was taken
├── QueueFullError           the waiting queue is at its limit
├── UnknownRequestError      no request with that id
├── BlocksWithdrawnError     blocks that another worker gave may not be written any more
├── GrammarError             an answer cannot go on inside its grammar
├── SamplingError            no token can be drawn for one request of a step; the others go on
├── StepFailedError          the runner raised; the requests of that step are lost
└── EngineStoppedError       the engine was stopped, or died of a bug
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of everything that the engine raises on purpose."""


class InvalidRequestError(EngineError):
    """A field of a request is out of range."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class ModelLoadError(EngineError):
    """A model directory or file cannot be used; the message names the file."""


class UnsupportedArchitectureError(ModelLoadError):
    """The architecture is not one of those supported; the message lists them."""


class OutOfBlocksError(EngineError):
    """Too few free KV blocks; nothing was taken."""


class QueueFullError(EngineError):
    """The waiting queue is at its limit; nothing was queued."""


class UnknownRequestError(EngineError):
    """No request has that id."""


class BlocksWithdrawnError(EngineError):
    """The blocks that another worker gave for a request may not be written any more."""


class GrammarError(EngineError):
    """An answer cannot go on inside its grammar: a dead end, or beyond the limits of one step."""


class SamplingError(EngineError):
    """No token can be drawn for one request of a step, which is failed with this; the others go on."""


class StepFailedError(EngineError):
    """The runner raised in a step; every request of that step is failed with this."""


class EngineStoppedError(EngineError):
    """The engine was stopped, or died of a bug; it takes no requests any more."""
