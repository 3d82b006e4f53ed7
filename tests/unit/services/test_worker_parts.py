"""Parts that both workers share, without sockets."""

import asyncio
import dataclasses
import threading

import pytest

from baton.v1 import prefill_pb2, sampling_pb2
from engine import errors as engine_errors
from engine.backends.cuda.errors import KernelError
from engine.sampling_params import SamplingParams
from engine.stats import EngineStats
from kvtransfer import errors as kv_errors
from services.common.errors import BatonError, ErrorReason
from services.worker.bridge import LoopBridge
from services.worker.config import WorkerConfig
from services.worker.errors import translate
from services.worker.intake import engine_request, sampling_params
from services.worker.metrics import LoadReporter, WorkerMetrics
from services.worker.requests_in_flight import InFlight


def test_absent_sampling_fields_take_the_documented_defaults() -> None:
    assert sampling_params(sampling_pb2.SamplingParams()) == SamplingParams()


def test_every_sampling_field_arrives() -> None:
    message = sampling_pb2.SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=0.75,
        frequency_penalty=-0.5,
        logit_bias={4: -2.0},
        seed=2**64 - 1,
        stop=["text"],
        stop_token_ids=[7, 8],
        ignore_eos=True,
        min_tokens=2,
        logprobs=0,
        prompt_logprobs=5,
    )
    params = sampling_params(message)
    for field in dataclasses.fields(params):
        want = getattr(message, field.name)
        got = getattr(params, field.name)
        assert got == (dict(want) if field.name == "logit_bias" else type(got)(want)), field.name
        assert got != getattr(SamplingParams(), field.name), (
            f"{field.name} has its default: nothing was tested"
        )


def test_a_request_is_made_of_its_message() -> None:
    message = prefill_pb2.PrefillRequest(
        request_id="r", token_ids=[1, 2, 3], num_prompt_tokens=2, priority=-5, cache_salt="s"
    )
    request = engine_request(message, "e", hold_blocks=True, max_new_tokens=1)
    assert (request.request_id, list(request.token_ids), request.num_output_tokens) == ("e", [1, 2, 3], 1)
    assert (request.priority, request.cache_salt, request.hold_blocks) == (-5, "s", True)


# A worker that meets one of these leaves.
AT_START = (engine_errors.ModelLoadError, KernelError)


def leaves(kind: type[Exception]) -> list[type[Exception]]:
    below = kind.__subclasses__()
    return [leaf for sub in below for leaf in leaves(sub)] if below else [kind]


@pytest.mark.parametrize(
    "kind",
    [
        *(k for k in leaves(engine_errors.EngineError) if not issubclass(k, AT_START)),
        *leaves(kv_errors.PeerError),
        *leaves(kv_errors.TransferError),
        kv_errors.ClosedError,
        kv_errors.InvalidTransferError,
    ],
)
def test_every_error_that_reaches_a_caller_has_a_reason(kind: type[Exception]) -> None:
    two = kind in (
        engine_errors.InvalidRequestError,
        kv_errors.InvalidTransferError,
        kv_errors.RejectedError,
    )
    known = translate(kind("field", "why") if two else kind("why"))
    assert known is not None
    assert "why" in known.message


def test_a_bug_has_no_reason() -> None:
    assert translate(KeyError("x")) is None


def test_the_field_at_fault_is_kept() -> None:
    known = translate(engine_errors.InvalidRequestError("token_ids", "must not be empty"))
    assert known is not None
    assert (known.reason, known.field) == (ErrorReason.INVALID_ARGUMENT, "token_ids")


@pytest.mark.parametrize(
    "fields", [{"transports": ()}, {"transports": ("pigeon",)}, {"gateway": ("nowhere",)}, {"kv_port": -1}]
)
def test_bad_worker_settings_name_the_field(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        WorkerConfig(**fields)


async def test_the_bridge_keeps_order_and_items_that_came_before_its_handler() -> None:
    bridge: LoopBridge[int] = LoopBridge(asyncio.get_running_loop())
    got: list[int] = []

    def feed(numbers: range) -> None:
        for number in numbers:
            bridge(number)

    await asyncio.to_thread(feed, range(50))
    await asyncio.sleep(0)
    bridge.attach(lambda item, at: got.append(item))
    await asyncio.to_thread(feed, range(50, 100))
    await asyncio.sleep(0.01)
    assert got == list(range(100))


def test_the_bridge_outlives_its_loop() -> None:
    loop = asyncio.new_event_loop()
    bridge: LoopBridge[int] = LoopBridge(loop)
    loop.close()
    thread = threading.Thread(target=bridge, args=(1,))
    thread.start()
    thread.join()


async def test_in_flight_is_empty_when_the_last_one_left() -> None:
    held: InFlight[str] = InFlight()
    await asyncio.wait_for(held.empty(), 1)
    held.add("a", "A")
    held.add("b", "B")
    held.remove("a")
    waiting = asyncio.create_task(held.empty())
    await asyncio.sleep(0)
    assert not waiting.done()
    held.remove("b")
    held.remove("b")
    await asyncio.wait_for(waiting, 1)


def test_the_load_carries_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now, total = 100.0, 0
    monkeypatch.setattr("services.worker.metrics.time.monotonic", lambda: now)

    def stats() -> EngineStats:
        names = (field.name for field in dataclasses.fields(EngineStats))
        return EngineStats(**(dict.fromkeys(names, 0) | {"sampled_tokens": total, "num_blocks": 8}))

    metrics = WorkerMetrics()
    report = LoadReporter(stats, metrics, lambda s: s.sampled_tokens)
    assert report().tokens_per_s == 0
    for _ in range(30):
        now, total = now + 1.0, total + 7
        load = report()
    assert load.tokens_per_s == pytest.approx(7)
    now += 20
    assert report().tokens_per_s == 0
    metrics.count_handoff("sent", "zmq_tcp", 3, 300)
    metrics.count_error(BatonError(ErrorReason.QUEUE_FULL, "full"))
    load = report()
    assert (load.transferred_blocks, load.transferred_bytes, list(load.transports)) == (3, 300, ["zmq_tcp"])
