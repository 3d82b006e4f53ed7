"""Renders a conversation with the model's chat template, as Transformers does."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from services.common.errors import BatonError, ErrorReason

# What a template may read of a message: text, and for turns of tools nested JSON.
Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]
Message = Mapping[str, Json]


class ChatTemplate:
    """A model's template, compiled.

    Raises:
        ValueError: a file cannot be read or is not a template; names it.
    """

    def __init__(self, directory: Path) -> None:
        config = _read_json(directory / "tokenizer_config.json")
        source = _template_source(directory, config)
        self._special_tokens = _special_tokens(config)
        self._template: jinja2.Template | None = None
        if source is not None:
            try:
                self._template = _environment().from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise ValueError(f"model: the chat template in {directory} is not valid: {error}") from error

    def render(self, messages: Sequence[Message], *, field: str = "messages") -> str:
        """Return the prompt that asks for the assistant's next turn.

        Raises:
            BatonError: the model has no template, or the template refuses the conversation.
        """
        if self._template is None:
            raise _bad(field, "this model has no chat template; send text or token ids")
        try:
            return self._template.render(
                messages=[_normalise(message, f"{field}[{i}]") for i, message in enumerate(messages)],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise _bad(field, f"the model's chat template refuses the conversation: {error}") from error


def _normalise(message: Message, field: str) -> Message:
    """Make the content one string: templates concatenate it."""
    content = message.get("content")
    if content is None:
        return {**message, "content": ""}
    if isinstance(content, str):
        return message
    texts: list[str] = []
    assert isinstance(content, Sequence)
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise _bad(f"{field}.content[{index}]", 'only parts of type "text" are supported')
        texts.append(text)
    return {**message, "content": "\n".join(texts)}


def _bad(field: str, message: str) -> BatonError:
    return BatonError(ErrorReason.INVALID_ARGUMENT, f"{field}: {message}", field=field)


def _read_json(path: Path) -> dict[str, Json]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model: {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"model: {path} must hold a JSON object")
    return content


def _template_source(directory: Path, config: Mapping[str, Json]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, Sequence) and not isinstance(source, str):
        named = {str(item["name"]): item["template"] for item in source if isinstance(item, Mapping)}
        source = named.get("default")
    return source if isinstance(source, str) else None


def _special_tokens(config: Mapping[str, Json]) -> dict[str, str]:
    """Return bos_token, eos_token and the like, as the template's variables."""
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            tokens[name] = token
    return tokens


class _Generation(jinja2.ext.Extension):
    """Lets `{% generation %}` through: it only marks the assistant's turns, for training."""

    tags = {"generation"}  # noqa: RUF012 -- as jinja2 types it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Json,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON: Jinja's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
