"""Builders for tests of the engine without a model."""

from __future__ import annotations

from collections.abc import Sequence

from engine.config import EngineConfig
from engine.kv.host_tier import NO_HOST_SLOTS, HostSlots
from engine.kv.layout import CacheGroup, CacheKind, KVLayout
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduler.scheduler import Scheduler

VOCAB_SIZE = 101
EOS = frozenset({100})
CONTEXT_LENGTH = 1 << 20


def create_group(block_size: int = 4, name: str = "attention") -> CacheGroup:
    return CacheGroup(name, CacheKind.ATTENTION, (0,), block_size, (1, 2, 1, block_size, 4), "float32")


def create_layout(block_size: int = 4) -> KVLayout:
    return KVLayout("model", "weights", (create_group(block_size),))


def create_config(
    max_step_tokens: int = 64,
    max_chunk_tokens: int = 64,
    max_running: int = 64,
    max_queue: int = 1024,
    prefix_cache: bool = True,
) -> EngineConfig:
    return EngineConfig(
        model="model",
        model_name="model",
        max_step_tokens=max_step_tokens,
        max_chunk_tokens=max_chunk_tokens,
        max_running=max_running,
        max_queue=max_queue,
        prefix_cache=prefix_cache,
        ahead=False,
    )


def create_scheduler(
    num_blocks: int = 64,
    block_sizes: Sequence[int] = (4,),
    config: EngineConfig | None = None,
    context_length: int = CONTEXT_LENGTH,
    host_slots: HostSlots = NO_HOST_SLOTS,
) -> Scheduler:
    groups = tuple(create_group(size, f"group{index}") for index, size in enumerate(block_sizes))
    return Scheduler(
        config or create_config(), groups, num_blocks, context_length, EOS, host_slots=host_slots
    )


_arrivals = iter(range(1, 1 << 62))


def create_request(
    prompt: int | Sequence[int],
    request_id: str | None = None,
    max_tokens: int | None = 8,
    sampling: SamplingParams | None = None,
    priority: int = 0,
    cache_salt: str = "",
    hold_blocks: bool = False,
) -> Request:
    """A request that arrives after all built before it; a prompt given as a length is unlike any other."""
    arrival = next(_arrivals)
    tokens = [(arrival * 31 + i * i) % 97 for i in range(prompt)] if isinstance(prompt, int) else list(prompt)
    return Request(
        request_id=request_id or f"request-{arrival}",
        token_ids=tokens,
        num_prompt_tokens=len(tokens),
        sampling=sampling or SamplingParams(max_tokens=max_tokens, temperature=0.0),
        priority=priority,
        cache_salt=cache_salt,
        arrival=arrival,
        hold_blocks=hold_blocks,
        max_new_tokens=1 if hold_blocks else None,
    )


def create_requests(
    count: int, num_prompt_tokens: int | Sequence[int] = 10, max_tokens: int | None = 8
) -> list[Request]:
    return [create_request(num_prompt_tokens, max_tokens=max_tokens) for _ in range(count)]
