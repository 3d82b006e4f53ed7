"""A gateway, workers with real engines, and clients, inside the test's process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from openai import AsyncOpenAI

from baton.v1.inference_pb2_grpc import InferenceServiceStub
from engine.config import EngineConfig
from services.gateway.app import Gateway
from services.gateway.config import GatewayConfig
from services.worker.runtime import Worker
from tests.support.workers import all_free, decode_worker, engine_config, eventually, prefill_worker


@dataclass
class ServedModel:
    """What `serve` runs.

    Attributes:
        client: of the OpenAI API; it does not retry.
        stub: of the gRPC API.
    """

    gateway: Gateway
    client: AsyncOpenAI
    stub: InferenceServiceStub
    prefills: list[Worker]
    decodes: list[Worker]
    lives: dict[str, AsyncExitStack]

    async def end(self, worker: Worker) -> None:
        """Stop a decode worker under way."""
        self.decodes.remove(worker)
        await self.lives.pop(worker.server.address).aclose()


@contextlib.asynccontextmanager
async def serve(
    model: Path,
    *,
    prefill: int = 1,
    decode: int = 1,
    prefill_engine: EngineConfig | None = None,
    **settings: Any,
) -> AsyncIterator[ServedModel]:
    """Serve a tiny model; at the end the workers must hold nothing.

    Args:
        prefill, decode: how many workers.
        prefill_engine: None: as decode's.
        settings: of the gateway.
    """
    gateway = Gateway(
        GatewayConfig(grpc_port=0, http_port=0, model=str(model), drain_timeout_s=1.0, **settings)
    )
    await gateway.start()
    addresses = [gateway.grpc_address]
    engine = engine_config(model)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(gateway.stop)
        prefills = [
            await stack.enter_async_context(prefill_worker(prefill_engine or engine, gateway=addresses))
            for _ in range(prefill)
        ]
        decodes, lives = [], {}
        for _ in range(decode):
            life = await stack.enter_async_context(AsyncExitStack())
            worker = await life.enter_async_context(decode_worker(engine, gateway=addresses))
            decodes.append(worker)
            lives[worker.server.address] = life
        client = await stack.enter_async_context(
            AsyncOpenAI(base_url=f"http://{gateway.http_address}/v1", api_key="none", max_retries=0)
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(gateway.grpc_address))
        await eventually(lambda: len(list(gateway.generator.registry)) == prefill + decode)
        yield ServedModel(gateway, client, InferenceServiceStub(channel), prefills, decodes, lives)
        await all_free(*prefills, *decodes)
