"""Handlers of /tokenize and /detokenize."""

from __future__ import annotations

import json

from services.gateway.generator import Generator
from services.gateway.http.exchange import JSON, Exchange
from services.gateway.http.params import chat_input
from services.gateway.http.parse import parse_body
from services.gateway.http.text_schema import DetokenizeBody, TokenizeBody
from services.gateway.http.tools import check_tools
from services.gateway.http.values import Json
from services.gateway.request import Input, TextInput, tokenize
from services.gateway.sampling import bad_field


class TokensApi:
    """Text to token ids and back, as the model's answers and prompts have it."""

    def __init__(self, generator: Generator) -> None:
        self._model = generator.model
        self._max_body_bytes = generator.config.max_body_bytes

    async def tokenize(self, exchange: Exchange) -> None:
        """POST /tokenize."""
        body = parse_body(TokenizeBody, await exchange.read_body(self._max_body_bytes))
        self._model.check_name(body.model)
        ids, _text = await tokenize(
            self._model, self._source(body), add_special_tokens=body.add_special_tokens
        )
        limit = self._model.limits().context_length if self._model.is_ready else None
        answer: dict[str, Json] = {"count": len(ids), "max_model_len": limit, "tokens": ids}
        if body.return_token_strs:
            tokens = (self._model.tokenizer.token_bytes(token_id) for token_id in ids)
            answer["token_strs"] = [token.decode(errors="replace") for token in tokens]
        await exchange.answer(json.dumps(answer, ensure_ascii=False).encode(), JSON)

    async def detokenize(self, exchange: Exchange) -> None:
        """POST /detokenize."""
        body = parse_body(DetokenizeBody, await exchange.read_body(self._max_body_bytes))
        self._model.check_name(body.model)
        text = self._model.detokenize(body.tokens, "tokens")
        await exchange.answer(json.dumps({"prompt": text}, ensure_ascii=False).encode(), JSON)

    def _source(self, body: TokenizeBody) -> Input:
        if (body.prompt is None) == (body.messages is None):
            raise bad_field("prompt", "exactly one of prompt and messages is needed")
        if body.prompt is not None:
            return TextInput(body.prompt, "prompt")
        if body.tools:
            check_tools(body.tools, self._model.template)
        return chat_input(body.messages or [], body.tools or (), body.chat_template_kwargs)
