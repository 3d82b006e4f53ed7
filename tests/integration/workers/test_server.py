"""The server bootstrap over real gRPC: statuses with details, health, reflection."""

from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.v1 import prefill_pb2, prefill_pb2_grpc
from services.common.channel import open_channel
from services.common.errors import BatonError, ErrorReason
from services.common.server import GrpcServer
from services.common.status import parse_status


class Refusing(prefill_pb2_grpc.PrefillServiceServicer):
    async def Prefill(self, request, context):  # noqa: N802
        yield prefill_pb2.PrefillResponse(first_token=prefill_pb2.FirstToken(token_id=7))
        raise KeyError("lower layer")

    async def Cancel(self, request, context):  # noqa: N802
        raise BatonError(ErrorReason.QUEUE_FULL, "queue: at most 3", field="queue", retry_after_s=0.5)


def translate(error: Exception) -> BatonError | None:
    return BatonError(ErrorReason.LEASE_EXPIRED, "gone") if error.args == ("lower layer",) else None


@pytest.fixture
async def server() -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel, list[BatonError]]]:
    errors: list[BatonError] = []
    server = GrpcServer("127.0.0.1", 0, translate=translate, on_error=errors.append)
    server.add(prefill_pb2_grpc.add_PrefillServiceServicer_to_server, Refusing(), "baton.v1.PrefillService")
    await server.start()
    async with open_channel(server.address) as channel:
        yield server, channel, errors
    await server.stop(0)


async def test_errors_become_statuses(server) -> None:
    _, channel, errors = server
    stub = prefill_pb2_grpc.PrefillServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Cancel(prefill_pb2.PrefillServiceCancelRequest(request_id="r"))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    parsed = parse_status(refused.value)
    assert (parsed.reason, parsed.field, parsed.retry_after_s) == (ErrorReason.QUEUE_FULL, "queue", 0.5)

    call = stub.Prefill(prefill_pb2.PrefillRequest(request_id="r"))
    assert (await call.read()).first_token.token_id == 7
    with pytest.raises(grpc.aio.AioRpcError) as lost:
        await call.read()
    assert parse_status(lost.value).reason is ErrorReason.LEASE_EXPIRED
    assert [error.reason for error in errors] == [ErrorReason.QUEUE_FULL, ErrorReason.LEASE_EXPIRED]


async def test_health_follows_set_serving(server) -> None:
    bootstrap, channel, _ = server
    health = health_pb2_grpc.HealthStub(channel)
    for serving in (False, True, False):
        await bootstrap.set_serving(serving)
        for name in ("", "baton.v1.PrefillService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == (
                health_pb2.HealthCheckResponse.SERVING
                if serving
                else health_pb2.HealthCheckResponse.NOT_SERVING
            )


async def test_a_message_over_the_limit_is_refused() -> None:
    small = GrpcServer("127.0.0.1", 0, max_message_bytes=1000)
    small.add(prefill_pb2_grpc.add_PrefillServiceServicer_to_server, Refusing(), "baton.v1.PrefillService")
    await small.start()
    async with open_channel(small.address) as channel:
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Cancel(prefill_pb2.PrefillServiceCancelRequest(request_id="r" * 2000))
        assert parse_status(refused.value).reason is ErrorReason.TOO_LARGE
    await small.stop(0)


async def test_a_taken_port_is_named(server) -> None:
    bootstrap, _, _ = server
    with pytest.raises(OSError, match=str(bootstrap.port)):
        GrpcServer("127.0.0.1", bootstrap.port)
