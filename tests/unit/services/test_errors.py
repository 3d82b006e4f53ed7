import json
import logging
import re
from pathlib import Path

import grpc
import pytest

from services.common.errors import ERROR_TABLE, BatonError, ErrorReason
from services.common.logs import JsonFormatter, request_id_var
from services.common.status import DETAILS_KEY, encode_status, parse_status


def carried(
    error: BatonError, metadata: tuple[tuple[str, str | bytes], ...] | None = None
) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*(metadata or ((DETAILS_KEY, encode_status(error)),)))
    return grpc.aio.AioRpcError(error.grpc_code, grpc.aio.Metadata(), trailing, details=error.message)


@pytest.mark.parametrize("reason", list(ErrorReason))
def test_every_reason_survives_the_wire(reason: ErrorReason) -> None:
    sent = BatonError(reason, "top_p: must be at most 1, got 2", field="sampling.top_p", retry_after_s=2.5)
    got = parse_status(carried(sent))
    assert (got.reason, got.message, got.field, got.retry_after_s) == (
        reason,
        sent.message,
        "sampling.top_p",
        2.5,
    )


def test_every_reason_has_an_error_status() -> None:
    assert set(ERROR_TABLE) == set(ErrorReason)
    for reason, status in ERROR_TABLE.items():
        assert status.grpc is not grpc.StatusCode.OK, reason
        assert 400 <= status.http < 600, reason


def test_an_error_of_grpc_itself_gets_the_reason_of_its_code() -> None:
    bare = BatonError(ErrorReason.WORKER_LOST, "failed to connect")
    assert parse_status(carried(bare, (("other", "x"),))).reason is ErrorReason.WORKER_LOST
    broken = carried(bare, ((DETAILS_KEY, b"\xff\xff\xff"),))
    assert parse_status(broken).reason is ErrorReason.WORKER_LOST


def test_log_lines_are_json_with_the_request_id() -> None:
    record = logging.LogRecord("a.b", logging.INFO, "f.py", 1, "did %s", ("it",), None)
    record.fields = {"blocks": 3}
    token = request_id_var.set("r-1")
    try:
        line = json.loads(JsonFormatter("prefill").format(record))
    finally:
        request_id_var.reset(token)
    assert line["message"] == "did it"
    assert (line["service"], line["level"], line["request_id"], line["blocks"]) == (
        "prefill",
        "info",
        "r-1",
        3,
    )


def test_docs_hold_the_same_table() -> None:
    documented = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (\d+) \|",
        (Path(__file__).parents[3] / "docs/errors.md").read_text(),
        re.MULTILINE,
    )
    assert documented == [
        (reason.name, status.grpc.name, str(status.http)) for reason, status in ERROR_TABLE.items()
    ]
