"""Configuration of one engine."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits and sizes.

    Attributes:
        model: directory of a model in Hugging Face's layout, or a GGUF file.
        model_name: name under which it is served.
        backend: "cpu" or "cuda".
        dtype: of weights, activations and KV: "float32", "float16", "bfloat16".
        block_size: tokens a KV block.
        kv_bytes: size of the KV pool, bytes; rounded down to whole blocks.
        context_length: most tokens of a request; 0: the model's own limit.
        max_step_tokens: token budget of a step, shared by all its requests.
        max_chunk_tokens: most tokens of one request in a step.
        max_running: most requests in a batch.
        max_queue: most requests that wait; more are refused.
        prefix_cache: reuse blocks of equal prefixes.
        threads: CPU threads of this process; 0: the library's choice.
        ahead: launch a step while the one before still runs; for a backend whose launch returns
            before the device is done.
    """

    model: str
    model_name: str
    backend: str = "cpu"
    dtype: str = "float32"
    block_size: int = 16
    kv_bytes: int = 512 << 20
    context_length: int = 0
    max_step_tokens: int = 256
    max_chunk_tokens: int = 256
    max_running: int = 256
    max_queue: int = 1024
    prefix_cache: bool = True
    threads: int = 0
    ahead: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in (
            "block_size",
            "kv_bytes",
            "max_step_tokens",
            "max_chunk_tokens",
            "max_running",
            "max_queue",
        ):
            if getattr(self, name) < 1:
                raise InvalidRequestError(name, f"must be at least 1, got {getattr(self, name)}")
        for name in ("context_length", "threads"):
            if getattr(self, name) < 0:
                raise InvalidRequestError(name, f"must be at least 0, got {getattr(self, name)}")
        if self.backend not in ("cpu", "cuda"):
            raise InvalidRequestError("backend", f"must be cpu or cuda, got {self.backend!r}")
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise InvalidRequestError("dtype", f"must be float32, float16 or bfloat16, got {self.dtype!r}")
