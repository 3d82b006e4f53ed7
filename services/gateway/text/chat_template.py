"""Renders a conversation with the model's chat template, as Transformers does."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from services.common.errors import BatonError, ErrorReason
from services.gateway.text.reasoning import CLOSE
from services.gateway.text.tool_calls import ToolFormat, detect_format

# What a template may read of a message: text, and for turns of tools nested JSON.
Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]
Message = Mapping[str, Json]


# What a template may raise that meets a conversation, or variables, that it was not made for.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
# What render() itself sets.
_OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt")


class ChatTemplate:
    """A model's template, compiled.

    Attributes:
        takes_tools: it shows tools to the model.
        tool_format: how the model writes calls; None: unknown.
        marks_reasoning: its model thinks between <think> and </think>.
    Raises:
        ValueError: a file cannot be read or is not a template; names it.
    """

    def __init__(self, directory: Path) -> None:
        config = _read_json(directory / "tokenizer_config.json")
        sources = _template_sources(directory, config)
        self._special_tokens = _special_tokens(config)
        self._templates: dict[str, jinja2.Template] = {}
        environment = _environment()
        for name, source in sources.items():
            try:
                self._templates[name] = environment.from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise ValueError(f"model: the chat template in {directory} is not valid: {error}") from error
        source = sources.get("tool_use", sources.get("default", ""))
        self.takes_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
        self.tool_format: ToolFormat | None = detect_format(source)
        self.marks_reasoning = CLOSE in source

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Json] = (),
        variables: Mapping[str, Json] | None = None,
        field: str = "messages",
    ) -> str:
        """Return the prompt that asks for the assistant's next turn.

        Args:
            tools: as OpenAI's API describes them; only if `takes_tools`.
            variables: further ones that the template may read.
        Raises:
            BatonError: the model has no template, or the template refuses the conversation.
        """
        template = self._templates.get("tool_use") if tools else None
        template = template or self._templates.get("default")
        if template is None:
            raise _bad(field, "this model has no chat template; send text or token ids")
        for name in variables or {}:
            if name in _OWN_VARIABLES:
                raise _bad(f"chat_template_kwargs.{name}", "this variable is set from the request")
        try:
            return template.render(
                {
                    **self._special_tokens,
                    **(variables or {}),
                    "messages": [_normalise(message, f"{field}[{i}]") for i, message in enumerate(messages)],
                    "tools": list(tools) or None,
                    "documents": None,
                    "add_generation_prompt": True,
                }
            )
        except _TEMPLATE_FAULTS as error:
            raise _bad(field, f"the model's chat template refuses the conversation: {error}") from error


def _normalise(message: Message, field: str) -> Message:
    """Make the content one string, because templates concatenate it, and arguments of calls objects."""
    content = message.get("content")
    if content is None:
        content = ""
    if not isinstance(content, str):
        assert isinstance(content, Sequence)
        content = "\n".join(_text_of(part, f"{field}.content[{i}]") for i, part in enumerate(content))
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence) or not calls:
        return {**message, "content": content}
    parsed = [_parse_call(call, f"{field}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return {**message, "content": content, "tool_calls": parsed}


def _text_of(part: Json, field: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise _bad(field, 'only parts of type "text" are supported')
    return text


def _parse_call(call: Json, field: str) -> Json:
    """Return a call whose arguments are an object: templates write them as JSON themselves."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise _bad(f"{field}.function", "must be an object with name and arguments")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(arguments or "{}")}}
    except (ValueError, RecursionError):
        raise _bad(f"{field}.function.arguments", "must be the text of a JSON object") from None


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


def _template_sources(directory: Path, config: Mapping[str, Json]) -> dict[str, str]:
    """Return the templates by name: "default", perhaps "tool_use"."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return {"default": path.read_text(encoding="utf-8")}
    source = config.get("chat_template")
    if isinstance(source, str):
        return {"default": source}
    if not isinstance(source, Sequence):
        return {}
    return {str(item["name"]): str(item["template"]) for item in source if isinstance(item, Mapping)}


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
