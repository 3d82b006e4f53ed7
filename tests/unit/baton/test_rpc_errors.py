from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from baton import errors
from baton.rpc_errors import request_error
from services.common.errors import BatonError, ErrorReason
from services.common.status import DETAILS_KEY, encode_status


def failed_call(error: BatonError) -> AioRpcError:
    trailing = Metadata((DETAILS_KEY, encode_status(error)))
    return AioRpcError(error.grpc_code, Metadata(), trailing, details=error.message)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (ErrorReason.INVALID_ARGUMENT, errors.InvalidRequestError),
        (ErrorReason.MODEL_NOT_FOUND, errors.NotFoundError),
        (ErrorReason.UNAUTHENTICATED, errors.UnauthenticatedError),
        (ErrorReason.QUEUE_FULL, errors.OverloadedError),
        (ErrorReason.DEADLINE_EXCEEDED, errors.DeadlineError),
        (ErrorReason.NO_WORKER, errors.UnavailableError),
        (ErrorReason.LAYOUT_MISMATCH, errors.ServerError),
        (ErrorReason.INTERNAL, errors.ServerError),
    ],
)
def test_every_status_has_its_exception(reason: ErrorReason, kind: type[errors.RequestError]) -> None:
    error = request_error(failed_call(BatonError(reason, "because", field="sampling.top_p")), "gateway:1")
    assert type(error) is kind
    assert (str(error), error.reason, error.field) == ("because", reason.name, "sampling.top_p")


def test_a_hint_to_retry_arrives() -> None:
    error = request_error(
        failed_call(BatonError(ErrorReason.QUEUE_FULL, "full", retry_after_s=2.5)), "gateway:1"
    )
    assert error.retry_after_s == 2.5
    assert (
        request_error(failed_call(BatonError(ErrorReason.INTERNAL, "bug")), "gateway:1").retry_after_s is None
    )


def test_a_gateway_that_is_not_there_is_named() -> None:
    refused = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="connection refused")
    error = request_error(refused, "gateway:1")
    assert type(error) is errors.UnavailableError
    assert str(error) == "no gateway answers at gateway:1: connection refused"
    assert error.reason == "UNREACHABLE"
