"""Builds an engine from its configuration: model, backend, KV pool, runner."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from engine.backends.base import Backend, KVPool, PoolMemory
from engine.backends.cuda.placement import Arena, Placement
from engine.borrowed import Borrowed, WeightsArena
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import InvalidRequestError
from engine.events import StepEvents
from engine.grammar.compiler import GrammarCompiler
from engine.kv.host_tier import slots_in
from engine.kv.layout import CacheGroup, CacheKind, KVLayout
from engine.models.architecture import Architecture
from engine.models.build import build_transformer
from engine.models.load import ModelFiles, open_model
from engine.models.transformer import Transformer
from engine.runner.model_runner import ModelRunner
from engine.sampler.sampler import Sampler
from engine.step import Runner
from engine.weights.shape_source import ShapeSource

Allocate = Callable[[str, int], PoolMemory]


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine, not yet started, and what its worker must know of it.

    Attributes:
        config: with every default filled in.
        engine: call start().
        layout: of the KV pool.
        num_blocks: blocks that the engine hands out.
        pool_blocks: blocks of the pool; more than those if it is borrowed.
        kv_memory: one a cache group, num_blocks * block_bytes; empty where the host cannot see the pool.
        vocab_size: V.
        context_length: most tokens of a request.
        grammars: makes the grammars of requests.
        load_seconds: time by phase: open, backend, weights, pool, runner.
    """

    config: EngineConfig
    engine: Engine
    layout: KVLayout
    num_blocks: int
    pool_blocks: int
    kv_memory: tuple[memoryview, ...]
    vocab_size: int
    context_length: int
    grammars: GrammarCompiler
    load_seconds: dict[str, float]


def build_engine(
    config: EngineConfig,
    on_events: Callable[[StepEvents], None],
    allocate: Allocate | None = None,
    borrowed: Borrowed | None = None,
) -> BuiltEngine:
    """Load the model and make its pool.

    Args:
        on_events: called on the engine thread, once a step.
        allocate: gives memory of (cache group, num_bytes): a view of host memory, such as shared memory, or
            on cuda a device address; None: private memory.
        borrowed: another process's pool to work in, and weights; `allocate` and kv_bytes are not used then.
    Raises:
        ModelLoadError: the model cannot be used.
        KernelError: no device, or one that cannot run this model.
        InvalidRequestError: kv_bytes holds no block, or context_length is beyond the model's.
    """
    config = config.resolved()
    seconds: dict[str, float] = {}
    with _timed(seconds, "open"):
        files = open_model(config.model)
        context_length = _context_length(config, files.architecture)
        layout = kv_layout(config, files)
    with _timed(seconds, "backend"):
        weights = None if borrowed is None else borrowed.weights
        backend = _backend(config, None if weights is None else _arena(weights))
    with _timed(seconds, "weights"):
        source = files.source if weights is None else ShapeSource(files.source)
        model = build_transformer(files.architecture, source, backend, context_length)
    with _timed(seconds, "pool"):
        group = layout.groups[0]
        free_bytes = _warm_up(config, model, backend, group, context_length)
        if borrowed is None:
            kv_bytes = config.kv_bytes or int(config.kv_fraction * free_bytes)
            first_block, num_blocks = 0, num_blocks_in(kv_bytes, group)
            pool_blocks = num_blocks
            memory = None if allocate is None else allocate(group.name, num_blocks * group.block_bytes)
        else:
            first_block, num_blocks = borrowed.first_block, borrowed.num_blocks
            pool_blocks, memory = borrowed.pool_blocks, borrowed.pools[group.name]
        pool = backend.allocate_pool(group, pool_blocks, memory)
    with _timed(seconds, "runner"):
        runner = _runner(config, files.architecture, model, backend, pool, context_length)
    engine = Engine(
        config,
        runner,
        layout,
        num_blocks,
        files.architecture.vocab_size,
        context_length,
        files.architecture.eos_token_ids,
        on_events,
        first_block=first_block,
    )
    return BuiltEngine(
        config=config,
        engine=engine,
        layout=layout,
        num_blocks=num_blocks,
        pool_blocks=pool_blocks,
        kv_memory=() if pool.memory is None else (pool.memory,),
        vocab_size=files.architecture.vocab_size,
        context_length=context_length,
        grammars=GrammarCompiler(
            config.model, files.architecture.vocab_size, files.architecture.eos_token_ids
        ),
        load_seconds=seconds,
    )


def read_layout(config: EngineConfig) -> KVLayout:
    """The layout that an engine of this configuration has; its weights are not read.

    Raises:
        ModelLoadError: the model cannot be used.
    """
    config = config.resolved()
    return kv_layout(config, open_model(config.model))


def num_blocks_in(kv_bytes: int, group: CacheGroup) -> int:
    """Whole blocks in so many bytes.

    Raises:
        InvalidRequestError: not even one.
    """
    if kv_bytes < group.block_bytes:
        raise InvalidRequestError("kv_bytes", f"{kv_bytes} holds no block of {group.block_bytes} bytes")
    return kv_bytes // group.block_bytes


def arena_bytes(config: EngineConfig) -> int:
    """Bytes of device memory that the weights take in an arena; 0 on the cpu: oneDNN's form cannot be shared.

    Raises:
        ModelLoadError, KernelError: as build_engine.
    """
    if config.backend == "cpu":
        return 0
    measure = Arena(torch.empty(1 << 50, dtype=torch.uint8, device="meta"))
    _build_weights(config, measure, with_numbers=False)
    return measure.used_bytes


def fill_arena(config: EngineConfig, weights: WeightsArena) -> None:
    """Load the weights of a model into an arena of `arena_bytes`; returns when they are there.

    Raises:
        ModelLoadError, KernelError: as build_engine.
    """
    _build_weights(config, _arena(weights), with_numbers=True)
    torch.cuda.synchronize()


def _build_weights(config: EngineConfig, placement: Placement, with_numbers: bool) -> None:
    config = config.resolved()
    files = open_model(config.model)
    source = files.source if with_numbers else ShapeSource(files.source)
    # One position: the rotary table is each engine's own.
    build_transformer(files.architecture, source, _backend(config, placement), max_positions=1)


def _arena(weights: WeightsArena) -> Arena:
    from engine.backends.cuda.pool_memory import bytes_at

    return Arena(bytes_at(weights.address, weights.num_bytes))


def kv_layout(config: EngineConfig, files: ModelFiles) -> KVLayout:
    """One group of plain attention over all layers; a sliding window only masks."""
    architecture = files.architecture
    shape = (
        architecture.num_layers,
        2,
        architecture.num_kv_heads,
        config.block_size,
        architecture.head_dim,
    )
    group = CacheGroup(
        name="attention",
        kind=CacheKind.ATTENTION,
        layer_ids=tuple(range(architecture.num_layers)),
        block_size=config.block_size,
        shape=shape,
        dtype=config.dtype,
    )
    identity = hashlib.sha256(f"{architecture!r} {files.source.weights_id}".encode()).hexdigest()
    return KVLayout(model=config.model_name, weights_id=identity, groups=(group,))


def _context_length(config: EngineConfig, architecture: Architecture) -> int:
    if config.context_length > architecture.max_positions:
        raise InvalidRequestError(
            "context_length", f"{config.context_length} is beyond the model's {architecture.max_positions}"
        )
    return config.context_length or architecture.max_positions


# What a backend alone needs is imported where it is chosen: numba here, cupy there.


def _backend(config: EngineConfig, placement: Placement | None) -> Backend:
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.backend == "cuda":
        if config.dtype not in ("bfloat16", "float16"):
            raise InvalidRequestError(
                "dtype", f"the cuda backend computes in bfloat16 or float16, got {config.dtype!r}"
            )
        from engine.backends.cuda.backend import CudaBackend

        return CudaBackend(getattr(torch, config.dtype), placement, batch_invariant=config.batch_invariant)
    if config.dtype != "float32":
        raise InvalidRequestError("dtype", f"the cpu backend computes in float32, got {config.dtype!r}")
    from engine.backends.cpu.backend import CpuBackend

    return CpuBackend()


def _warm_up(
    config: EngineConfig, model: Transformer, backend: Backend, group: CacheGroup, context_length: int
) -> int:
    """Bytes of device memory that a full step leaves free; 0 on the cpu, which needs no warming."""
    if config.backend == "cpu":
        return 0
    from engine.backends.cuda.backend import CudaBackend
    from engine.runner.cuda.warmup import warm_up

    assert isinstance(backend, CudaBackend)
    return warm_up(config, model, backend, group, context_length)


def _runner(
    config: EngineConfig,
    architecture: Architecture,
    model: Transformer,
    backend: Backend,
    pool: KVPool,
    context_length: int,
) -> Runner:
    if config.backend == "cuda":
        from engine.backends.cuda.backend import CudaBackend
        from engine.runner.cuda.runner import CudaRunner

        assert isinstance(backend, CudaBackend)
        return CudaRunner(config, architecture.eos_token_ids, model, backend, pool, context_length)
    slots = slots_in(config.swap_bytes, config.host_cache_bytes, (pool.group,))
    return ModelRunner(model, backend, pool, Sampler(architecture.eos_token_ids), slots.total)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start
