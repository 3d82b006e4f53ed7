"""Role `apart`: a prefill and a decode worker, each a process, and a transport between them.

This process does what a gateway does, without text: Reserve, Prefill, and the step stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from baton.process import Role, ServiceProcess, child_environ
from baton.v1 import decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc, sampling_pb2
from bench.engine.measurement import Measurement, Watch
from bench.engine.workloads import Workload
from services.common.channel import open_channel

START_TIMEOUT_S = 600.0
TIMEOUT_S = 3600.0
GATEWAY = "bench"
ROLES: tuple[Role, ...] = ("prefill", "decode")


class Apart:
    """Runs workloads on two workers.

    Args:
        flags: of both services; the model's and the engine's.
        logs: directory for the workers' logs.
        gpus: of the prefill and of the decode worker, by number; empty: none is named.
    Attributes:
        start_s: from nothing until both are ready.
        transports: that carried blocks.
    """

    name = "apart"

    def __init__(self, flags: Sequence[str], logs: Path, gpus: Sequence[str] = ("", "")) -> None:
        start = time.perf_counter()
        self.transports: set[str] = set()
        self._runs = 0
        self._workers = [
            ServiceProcess(
                role, role, worker_flags(flags, role, gpu), logs / f"{role}.log", child_environ({})
            )
            for role, gpu in zip(ROLES, (gpus[0], gpus[-1]), strict=True)
        ]
        try:
            # Each is asked, so that one that died is noticed while the other still loads.
            while sum(worker.poll_ready() for worker in self._workers) < len(self._workers):
                if time.perf_counter() - start > START_TIMEOUT_S:
                    raise TimeoutError(f"the workers are not ready after {START_TIMEOUT_S:g} s")
                time.sleep(0.02)
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - start

    def run(self, workload: Workload, prompts: list[list[int]]) -> Measurement:
        """Answer all prompts of a workload; grpc.RpcError if a call fails."""
        self._runs += 1
        return asyncio.run(self._run(workload, prompts))

    def counters(self) -> dict[str, int]:
        """Return nothing: the workers' metrics have it."""
        return {}

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            if not worker.wait(10.0):
                worker.kill()

    async def _run(self, workload: Workload, prompts: list[list[int]]) -> Measurement:
        names = [f"{self._runs}-{index}" for index in range(len(prompts))]
        watch = Watch(dict(zip(names, (num_out for _, num_out in workload.sizes), strict=True)))
        prefill, decode = (open_channel(worker.address) for worker in self._workers)
        async with prefill, decode:
            run = _Run(
                prefill_pb2_grpc.PrefillServiceStub(prefill), decode_pb2_grpc.DecodeServiceStub(decode)
            )
            result = await run.answer(watch, prompts, workload)
        self.transports |= run.transports
        return result


class _Run:
    def __init__(
        self, prefill: prefill_pb2_grpc.PrefillServiceStub, decode: decode_pb2_grpc.DecodeServiceStub
    ) -> None:
        self.transports: set[str] = set()
        self._prefill = prefill
        self._decode = decode
        self._done = asyncio.Event()
        self._open = asyncio.Event()

    async def answer(self, watch: Watch, prompts: list[list[int]], workload: Workload) -> Measurement:
        steps = asyncio.create_task(self._read_steps(watch))
        await self._open.wait()
        watch.start = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for name, prompt, (_, num_out) in zip(watch.wanted, prompts, workload.sizes, strict=True):
                tasks.create_task(self._start(watch, name, prompt, num_out))
        done = asyncio.create_task(self._done.wait())
        await asyncio.wait([done, steps], timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        assert done.done(), f"the step stream ended; {watch.left} requests are not done"
        steps.cancel()
        await asyncio.gather(steps, return_exceptions=True)
        return watch.result(workload.watched)

    async def _start(self, watch: Watch, name: str, prompt: list[int], num_out: int) -> None:
        sampling = sampling_pb2.SamplingParams(max_tokens=num_out, temperature=0.0, ignore_eos=True)
        prefill = prefill_pb2.PrefillRequest(
            request_id=name, token_ids=prompt, num_prompt_tokens=len(prompt), sampling=sampling
        )
        if num_out > 1:
            reserve = decode_pb2.ReserveRequest(
                request_id=name,
                gateway_id=GATEWAY,
                token_ids=prompt,
                num_prompt_tokens=len(prompt),
                sampling=sampling,
                transfer_id=name,
            )
            reserved = await self._decode.Reserve(reserve, timeout=TIMEOUT_S)
            prefill.target.CopyFrom(reserved.target)
        async for response in self._prefill.Prefill(prefill, timeout=TIMEOUT_S):
            if response.HasField("first_token"):
                self._note(watch, name, 1)
            else:
                self.transports.add(response.handed_over.transport)

    async def _read_steps(self, watch: Watch) -> None:
        call = self._decode.StreamSteps(decode_pb2.StreamStepsRequest(gateway_id=GATEWAY))
        async for message in call:
            self._open.set()
            for event in message.events:
                assert not event.HasField("failure"), event.failure
                self._note(watch, event.request_id, len(event.token_ids))

    def _note(self, watch: Watch, name: str, count: int) -> None:
        if watch.token(name, time.perf_counter(), count):
            self._done.set()


def worker_flags(flags: Sequence[str], role: Role, gpu: str) -> list[str]:
    """Flags of one worker. It must see the other's GPU too: the hand-off writes there."""
    return [*flags, "--worker-id", role, *(("--gpu", gpu) if gpu else ())]
