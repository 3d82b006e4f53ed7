"""The model that this gateway serves: its name, text side and limits."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import BatonError, ErrorReason
from services.gateway.registry import Registry
from services.gateway.sampling import bad_field
from services.gateway.text.chat_template import ChatTemplate
from services.gateway.text.message import MessageParser
from services.gateway.text.reasoning import CLOSE, OPEN, ReasoningSplitter, begins_thinking
from services.gateway.text.tokenizer import Tokenizer
from services.gateway.text.tool_calls import MARKS, ToolFormat, make_parser


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

    def shown_tokens(self, *, with_tools: bool) -> frozenset[int]:
        """Return the control tokens that `message_parser` must see as text."""
        format = self.template.tool_format
        marks = [*((OPEN, CLOSE) if self.template.marks_reasoning else ())]
        marks += MARKS[format] if with_tools and format is not None else ()
        ids = (self.tokenizer.id_of(mark) for mark in marks)
        return frozenset(token_id for token_id in ids if token_id is not None)

    def message_parser(
        self, prompt: str, tool_names: Set[str] = frozenset(), format: ToolFormat | None = None
    ) -> MessageParser:
        """Return what splits an answer to a chat into reasoning, text and calls of tools.

        Args:
            format: of calls; None: there are none.
        """
        reasoning: ReasoningSplitter | None = None
        if self.template.marks_reasoning:
            reasoning = ReasoningSplitter(is_open=begins_thinking(prompt))
        tools = make_parser(format, tool_names) if tool_names and format is not None else None
        return MessageParser(reasoning, tools)

    def detokenize(self, token_ids: Sequence[int], field: str) -> str:
        """Return the text of ids.

        Raises:
            BatonError: INVALID_ARGUMENT: an id is not in the vocabulary.
        """
        size = self.tokenizer.vocab_size
        for index, token_id in enumerate(token_ids):
            if token_id >= size:
                raise bad_field(f"{field}[{index}]", f"ids must be below {size}, got {token_id}")
        return self.tokenizer.decode(token_ids)

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
