"""The tools of a request: which may or must be called, and how the model writes calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.gateway.constraints.tool_calls import Demand
from services.gateway.http.constraint_schema import (
    AllowedToolChoice,
    FlatAllowedToolChoice,
    FlatToolChoice,
    NamedToolChoice,
)
from services.gateway.http.responses_schema import ResponsesBody
from services.gateway.http.schema import ChatBody, FunctionSchema, Tool
from services.gateway.sampling import bad_field
from services.gateway.text.chat_template import ChatTemplate
from services.gateway.text.tool_calls import ToolFormat


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools.

    Attributes:
        tools: those that may be called; at least one.
        shown: those that the template shows to the model.
        demand: whether one must be called.
        format: how the model writes calls.
        fields: of the request's body, where each function is, by name.
    """

    tools: Sequence[Tool]
    shown: Sequence[Tool]
    demand: Demand
    format: ToolFormat
    fields: Mapping[str, str]

    @property
    def names(self) -> frozenset[str]:
        """Of the tools that may be called."""
        return frozenset(tool.function.name for tool in self.tools)


@dataclass(frozen=True, slots=True)
class Choice:
    """A tool_choice in whatever shape.

    Attributes:
        mode: "none", "auto" or "required".
        names: of the tools that may be called, and the fields that say so; None: all.
        is_one: exactly one call.
    """

    mode: str
    names: Sequence[tuple[str, str]] | None = None
    is_one: bool = False


def chat_tools(body: ChatBody, template: ChatTemplate) -> ToolUse | None:
    """Return the use of tools in a chat; None: none is called. BatonError: as `use_tools`."""
    match body.tool_choice:
        case NamedToolChoice() as named:
            names = [(named.function.name, "tool_choice.function.name")]
            choice = Choice("required", names, is_one=True)
        case AllowedToolChoice(allowed_tools=allowed):
            path = "tool_choice.allowed_tools.tools[{}].function.name"
            names = [(tool.function.name, path.format(i)) for i, tool in enumerate(allowed.tools)]
            choice = Choice(allowed.mode, names)
        case mode:
            choice = Choice(mode or "auto")
    return use_tools(body.tools or [], "tools[{}].function", choice, body.parallel_tool_calls, template)


def response_tools(body: ResponsesBody, template: ChatTemplate) -> ToolUse | None:
    """Return the use of tools in a response; None: none is called. BatonError: as `use_tools`."""
    match body.tool_choice:
        case FlatToolChoice() as named:
            choice = Choice("required", [(named.name, "tool_choice.name")], is_one=True)
        case FlatAllowedToolChoice() as allowed:
            names = [(tool.name, f"tool_choice.tools[{i}].name") for i, tool in enumerate(allowed.tools)]
            choice = Choice(allowed.mode, names)
        case mode:
            choice = Choice(mode or "auto")
    tools = [
        Tool(
            type="function",
            function=FunctionSchema(
                name=tool.name,
                description=tool.description,
                parameters=tool.parameters,
                strict=tool.strict or None,
            ),
        )
        for tool in body.tools or []
    ]
    return use_tools(tools, "tools[{}]", choice, body.parallel_tool_calls, template)


def check_tools(tools: Sequence[Tool], template: ChatTemplate) -> ToolFormat:
    """Return the format of calls of a model that chooses by itself.

    Raises:
        BatonError: INVALID_ARGUMENT: it cannot be shown tools, or its format is not known.
    """
    if not template.takes_tools:
        raise bad_field(
            "tools",
            "this model's chat template does not show tools to the model; only a demanded call "
            '(tool_choice "required", or a named function) can be had',
        )
    if template.tool_format is None:
        raise bad_field("tools", "the format in which this model writes calls of tools is not known")
    return template.tool_format


def use_tools(
    tools: Sequence[Tool], path: str, choice: Choice, parallel: bool | None, template: ChatTemplate
) -> ToolUse | None:
    """Return the use of tools; None: none is called.

    A demanded call is enforced by a grammar, so it needs no template that shows tools: the
    answer is then one JSON object.

    Args:
        path: of a function in the body, with a place for its number.
    Raises:
        BatonError: INVALID_ARGUMENT: what is asked for cannot be had.
    """
    fields = _fields(tools, path)
    if choice.mode == "none":
        return None
    if not tools:
        if choice.mode != "auto" or choice.names is not None:
            raise bad_field("tool_choice", "there are no tools to call")
        return None
    called = tools
    if choice.names is not None:
        for name, field in choice.names:
            if name not in fields:
                raise bad_field(field, f"{name!r} is not among the tools")
        names = {name for name, _ in choice.names}
        called = [tool for tool in tools if tool.function.name in names]
    if choice.mode == "auto":
        return ToolUse(called, tools, Demand.OPTIONAL, check_tools(tools, template), fields)
    demand = Demand.ONE if choice.is_one or parallel is False else Demand.SOME
    shown = tools if template.takes_tools else []
    return ToolUse(called, shown, demand, template.tool_format or ToolFormat.LLAMA3, fields)


def _fields(tools: Sequence[Tool], path: str) -> dict[str, str]:
    """Return where each function is. BatonError: a name is there twice."""
    fields: dict[str, str] = {}
    for i, tool in enumerate(tools):
        name = tool.function.name
        if name in fields:
            raise bad_field(f"{path.format(i)}.name", f"{name!r} is there twice")
        fields[name] = path.format(i)
    return fields
