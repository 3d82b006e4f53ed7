"""A gateway in process, with scripted workers over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from baton.v1.inference_pb2 import Delta, Finished, GenerateRequest, Started, TokenIds
from baton.v1.inference_pb2_grpc import InferenceServiceStub
from baton.v1.sampling_pb2 import SamplingParams
from services.gateway.app import Gateway
from services.gateway.config import GatewayConfig
from tests.support.byte_tokenizer import write_byte_tokenizer
from tests.support.scripted_workers import ScriptedCluster
from tests.support.speaking import TEMPLATES


@dataclass
class Answer:
    """A finished stream."""

    started: Started
    deltas: list[Delta]
    finished: Finished

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


class Setup:
    """The gateway under test, its workers and its clients."""

    def __init__(self, gateway: Gateway, channel: grpc.aio.Channel, http: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.generator = gateway.generator
        self.workers = ScriptedCluster(self.generator.registry)
        self.stub = InferenceServiceStub(channel)
        self.channel = channel
        self.http = http

    def call(self, prompt: Sequence[int], timeout: float | None = 20, **sampling: object):  # type: ignore[no-untyped-def]
        params = SamplingParams(**{"temperature": 0, **sampling})  # type: ignore[arg-type]
        request = GenerateRequest(token_ids=TokenIds(ids=prompt), sampling=params)
        return self.stub.Generate(request, timeout=timeout)

    async def generate(self, prompt: Sequence[int], timeout: float | None = 20, **sampling: object) -> Answer:
        return await collect(self.call(prompt, timeout, **sampling))

    async def nothing_held(self, within_s: float = 1.0) -> None:
        """Wait until gateway and workers hold nothing; fail if that takes longer."""
        admission = self.generator.admission
        async with asyncio.timeout(within_s):
            while self.workers.held() or admission.in_flight or admission.waiting:
                await asyncio.sleep(0.005)
        for worker in self.generator.registry:
            assert (worker.held_blocks, worker.held_tokens) == (0, 0)


async def collect(call: AsyncIterator[object]) -> Answer:
    started: Started | None = None
    deltas: list[Delta] = []
    async for response in call:
        kind = response.WhichOneof("event")  # type: ignore[attr-defined]
        if kind == "started":
            assert started is None
            started = response.started  # type: ignore[attr-defined]
        elif kind == "delta":
            deltas.append(response.delta)  # type: ignore[attr-defined]
        else:
            assert started is not None
            return Answer(started, deltas, response.finished)  # type: ignore[attr-defined]
    raise AssertionError("the stream ended without `finished`")


MakeSetup = Callable[..., Awaitable[Setup]]


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("models") / "tiny")


@pytest_asyncio.fixture
async def make_setup(byte_model: Path) -> AsyncIterator[MakeSetup]:
    made: list[Setup] = []

    async def make(prefills: int = 1, decodes: int = 1, **settings: object) -> Setup:
        defaults = {"model": str(byte_model), "worker_wait_s": 2.0, "drain_timeout_s": 1.0}
        config = GatewayConfig(grpc_port=0, http_port=0, **{**defaults, **settings})  # type: ignore[arg-type]
        gateway = Gateway(config)
        await gateway.start()
        setup = Setup(
            gateway,
            grpc.aio.insecure_channel(gateway.grpc_address),
            httpx.AsyncClient(base_url=f"http://{gateway.http_address}", timeout=20),
        )
        made.append(setup)
        for i in range(prefills):
            await setup.workers.add_prefill(f"p{i}")
        for i in range(decodes):
            await setup.workers.add_decode(f"d{i}")
        return setup

    yield make
    for setup in made:
        await setup.http.aclose()
        await setup.channel.close()
        await setup.gateway.stop()
        await setup.workers.close()


def client_of(setup: Setup) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{setup.http.base_url}/v1", api_key="none", max_retries=0)


@pytest_asyncio.fixture
async def setup(make_setup: MakeSetup) -> Setup:
    """A prefill and a decode worker."""
    return await make_setup()


@pytest_asyncio.fixture
async def client(setup: Setup) -> AsyncIterator[AsyncOpenAI]:
    """A client of `setup`."""
    async with client_of(setup) as made:
        yield made


@pytest_asyncio.fixture
async def speaking(make_setup: MakeSetup, tmp_path: Path, request: Any) -> AsyncIterator[AsyncOpenAI]:
    """A client of a model whose template is the one named by the parameter."""
    model = write_byte_tokenizer(
        tmp_path / "tiny", template=TEMPLATES[request.param], special_tokens=["[TOOL_CALLS]"]
    )
    async with client_of(await make_setup(model=str(model))) as client:
        yield client
