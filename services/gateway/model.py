"""The model that this gateway serves: its name, text side and limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.common.errors import BatonError, ErrorReason
from services.gateway.registry import Registry
from services.gateway.text.chat_template import ChatTemplate
from services.gateway.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the workers can take.

    Attributes:
        context_length: most tokens of prompt and answer together.
        vocab_size: ids are below this.
        block_size: tokens a KV block.
    """

    context_length: int
    vocab_size: int
    block_size: int


class ServedModel:
    """A model directory and a name.

    Raises:
        ValueError: the directory's tokenizer or template cannot be used.
    """

    def __init__(self, name: str, directory: Path, registry: Registry) -> None:
        self.name = name
        self.tokenizer = Tokenizer(directory)
        self.template = ChatTemplate(directory)
        self._registry = registry

    def check_name(self, name: str) -> None:
        """Raise MODEL_NOT_FOUND unless the name is empty or this model's."""
        if name not in ("", self.name):
            raise BatonError(
                ErrorReason.MODEL_NOT_FOUND,
                f"model: {name!r} is not served; known: {self.name!r}",
                field="model",
            )

    @property
    def is_ready(self) -> bool:
        """Whether a worker of each kind takes requests."""
        workers = [worker for worker in self._registry if not worker.is_draining]
        return any(worker.does_prefill for worker in workers) and any(
            worker.does_decode for worker in workers
        )

    def limits(self) -> ModelLimits:
        """Return what every listed worker can take.

        Raises:
            BatonError: NO_WORKER: there is no prefill or no decode worker.
        """
        if not self.is_ready:
            raise BatonError(
                ErrorReason.NO_WORKER, "no worker is ready: a prefill and a decode worker must register"
            )
        workers = list(self._registry)
        pools = [worker.info.num_blocks * worker.info.block_size for worker in workers if worker.does_decode]
        return ModelLimits(
            context_length=min(*pools, *(worker.info.context_length for worker in workers)),
            vocab_size=min(worker.info.vocab_size for worker in workers),
            block_size=workers[0].info.block_size,
        )
