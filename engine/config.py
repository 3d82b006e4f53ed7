"""Configuration of one engine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from engine.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits and sizes.

    Attributes:
        model: directory of a model in Hugging Face's layout, or a GGUF file.
        model_name: name under which it is served.
        backend: "cpu" or "cuda".
        dtype: of weights, activations and KV: "float32" (cpu), "float16", "bfloat16" (cuda);
            "auto": float32 on cpu, bfloat16 on cuda.
        block_size: tokens a KV block; 0: 16 on cpu, 64 on cuda.
        kv_bytes: size of the KV pool, bytes; rounded down to whole blocks. 0: 512M on cpu; on cuda
            kv_fraction of what is free once weights are loaded and a full step has run.
        kv_fraction: share of the free device memory that the KV pool takes when kv_bytes is 0.
        context_length: most tokens of a request; 0: the model's own limit.
        max_step_tokens: token budget of a step, shared by all its requests; 0: 256 on cpu, 2048 on cuda.
        max_chunk_tokens: most tokens of one request in a step; 0: max_step_tokens.
        max_running: most requests in a batch.
        max_queue: most requests that wait; more are refused.
        prefix_cache: reuse blocks of equal prefixes.
        swap_bytes: host memory for requests that decode has no room for; rounded down to whole blocks.
            0: they are computed again.
        host_cache_bytes: host memory for prefixes that are evicted from the pool, likewise. 0: they are lost.
        threads: CPU threads of this process; 0: the library's choice.
        batch_invariant: on cuda, compute a request in ways that depend neither on the batch nor on how its
            work was cut; costs some speed, and answers are not cached for others' prompts.
            docs/kernels/batch_invariance.md has the rule.
        graphs: replay steps as CUDA graphs, on cuda.
        ahead: launch a step while the one before still runs, on cuda.
        late: then launch it just before the one before ends, so that it takes along what has arrived.
    """

    model: str
    model_name: str
    backend: str = "cpu"
    dtype: str = "auto"
    block_size: int = 0
    kv_bytes: int = 0
    kv_fraction: float = 0.9
    context_length: int = 0
    max_step_tokens: int = 0
    max_chunk_tokens: int = 0
    max_running: int = 256
    max_queue: int = 1024
    prefix_cache: bool = True
    swap_bytes: int = 0
    host_cache_bytes: int = 0
    threads: int = 0
    batch_invariant: bool = False
    graphs: bool = True
    ahead: bool = True
    late: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("max_running", "max_queue"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(name, f"must be at least 1, got {getattr(self, name)}")
        for name in (
            "block_size",
            "kv_bytes",
            "max_step_tokens",
            "max_chunk_tokens",
            "context_length",
            "swap_bytes",
            "host_cache_bytes",
            "threads",
        ):
            if getattr(self, name) < 0:
                raise InvalidRequestError(name, f"must be at least 0, got {getattr(self, name)}")
        if not 0.0 < self.kv_fraction <= 1.0:
            raise InvalidRequestError("kv_fraction", f"must be above 0 and at most 1, got {self.kv_fraction}")
        if self.backend not in ("cpu", "cuda"):
            raise InvalidRequestError("backend", f"must be cpu or cuda, got {self.backend!r}")
        if self.dtype not in ("auto", "float32", "float16", "bfloat16"):
            raise InvalidRequestError(
                "dtype", f"must be auto, float32, float16 or bfloat16, got {self.dtype!r}"
            )

    def resolved(self) -> EngineConfig:
        """The same with every default that depends on the backend filled in.

        kv_bytes stays 0 on cuda: only the device knows.
        """
        cuda = self.backend == "cuda"
        step = self.max_step_tokens or (2048 if cuda else 256)
        return dataclasses.replace(
            self,
            dtype=("bfloat16" if cuda else "float32") if self.dtype == "auto" else self.dtype,
            block_size=self.block_size or (64 if cuda else 16),
            kv_bytes=self.kv_bytes or (0 if cuda else 512 << 20),
            max_step_tokens=step,
            max_chunk_tokens=self.max_chunk_tokens or step,
            # The cpu is done when launch returns: there is nothing to run ahead of.
            ahead=self.ahead and cuda,
        )
