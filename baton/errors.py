"""Errors of the client, the launcher and the model cache.

BatonError
├── RequestError                 a call to a cluster failed; .reason, .field, .retry_after_s
│   ├── InvalidRequestError      a field is missing or out of range
│   ├── NotFoundError            unknown model
│   ├── UnauthenticatedError     no key, or a wrong one
│   ├── OverloadedError          queue full, out of blocks or over a rate limit; worth retrying
│   ├── DeadlineError            the deadline passed
│   ├── CancelledError           the call was cancelled
│   ├── UnavailableError         no gateway there, or no worker ready
│   └── ServerError              anything else that the cluster got wrong
├── ClusterError                 a local cluster could not start, or lost a process
└── ModelError                   a model cannot be fetched or converted
"""

from __future__ import annotations


class BatonError(Exception):
    """Base of everything that this package raises on purpose."""


class RequestError(BatonError):
    """A call to a cluster failed.

    Attributes:
        reason: the reason in google.rpc.ErrorInfo, such as "QUEUE_FULL"; the status code's name without one.
        field: the field at fault, as google.rpc.BadRequest names it; empty if none.
        retry_after_s: when to try again, as google.rpc.RetryInfo says; None: it says nothing.
    """

    def __init__(
        self, message: str, reason: str = "", field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidRequestError(RequestError):
    """A field is missing or out of range."""


class NotFoundError(RequestError):
    """The cluster has no such model."""


class UnauthenticatedError(RequestError):
    """No key, or a wrong one."""


class OverloadedError(RequestError):
    """The queue is full, blocks have run out, or a rate limit was hit; try again after `retry_after_s`."""


class DeadlineError(RequestError):
    """The deadline passed."""


class CancelledError(RequestError):
    """The call was cancelled."""


class UnavailableError(RequestError):
    """No gateway answers there, or no worker is ready."""


class ServerError(RequestError):
    """The cluster failed."""


class ClusterError(BatonError):
    """A local cluster could not start, or lost a process; the message ends with the log's last lines."""


class ModelError(BatonError):
    """A model cannot be fetched or converted."""
