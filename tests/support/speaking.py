"""Scripted workers that say what they are told, of a model whose template shows tools."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.support import scripted_workers
from tests.support.byte_tokenizer import EOS, ids_of

ASSISTANT = "assistant\n"


def speak(monkeypatch: pytest.MonkeyPatch, after: str, text: str | Sequence[int]) -> None:
    """Let the workers answer a prompt that ends with `after` with `text`, then the end-of-sequence token."""
    script = ids_of(text) if isinstance(text, str) else list(text)
    mark = ids_of(after)

    def next_token(token_ids: Sequence[int], seed: int = 0) -> int:
        ids = list(token_ids)
        at = next(i for i in range(len(ids), 0, -1) if ids[i - len(mark) : i] == mark)
        return script[len(ids) - at] if len(ids) - at < len(script) else EOS

    monkeypatch.setattr(scripted_workers, "next_token", next_token)


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
# Which template, what the model says, what of it is text, and how many calls of TOOL are the rest.
SAID: list[tuple[str, str | list[int], str, int]] = [
    ("hermes", f"I look.\n<tool_call>\n{CALL}\n</tool_call>", "I look.", 1),
    ("hermes", f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", 2),
    ("hermes", "No need, é.", "No need, é.", 0),
    ("mistral", [259, *ids_of(f"[{CALL}]")], "", 1),
    ("mistral", [259, *ids_of('get_weather{"city": "Paris"}')], "", 1),
    ("llama3", CALL.replace("arguments", "parameters"), "", 1),
    ("llama3", "{1, 2}", "{1, 2}", 0),
]
TOOLS = "{% if tools %}<s>{{ tools | tojson }}</s>{% endif %}"
TURNS = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}</s>"
    "{% endfor %}{{ '<s>assistant\n' }}"
)
TEMPLATES = {
    "hermes": TOOLS + "{# <tool_call> #}" + TURNS,
    "mistral": TOOLS + "{# [TOOL_CALLS] #}" + TURNS,
    "llama3": TOOLS + '{# "parameters" #}' + TURNS,
    "thinking": "{# </think> #}" + TOOLS + "{# <tool_call> #}" + TURNS + "{{ '<think>\n' if think }}",
}
