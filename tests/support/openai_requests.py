"""Requests that say "hi" in each of OpenAI's APIs, and what scripted workers answer."""

from __future__ import annotations

from typing import Any

from tests.support.byte_tokenizer import ids_of, text_of
from tests.support.scripted_workers import expected

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT_IDS = [1, *ids_of("user\nhi"), 2, 1, *ids_of("assistant\n")]
CHAT_TEXT = text_of(expected(CHAT_IDS, 8))
HI_TEXT = text_of(expected(ids_of("hi"), 8))

CHAT: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
PLAIN: dict[str, Any] = {"model": "tiny", "prompt": "hi", "temperature": 0, "max_tokens": 8}
RESPONSE: dict[str, Any] = {"model": "tiny", "input": "hi", "temperature": 0, "max_output_tokens": 8}
