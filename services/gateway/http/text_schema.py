"""Bodies of /tokenize and /detokenize."""

from __future__ import annotations

from pydantic import Field, JsonValue

from services.gateway.http.schema import ChatTurn, Strict, Tool, Uint32


class TokenizeBody(Strict):
    """POST /tokenize: exactly one of prompt and messages."""

    model: str = ""
    prompt: str | None = None
    messages: list[ChatTurn] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Strict):
    """POST /detokenize."""

    model: str = ""
    tokens: list[Uint32] = Field(max_length=1 << 20)
