"""The tools of a chat: which may or must be called, and how the model writes calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.constraints.tool_calls import Demand
from services.gateway.http.constraint_schema import NamedToolChoice
from services.gateway.http.schema import ChatBody, Tool
from services.gateway.sampling import bad_field
from services.gateway.text.chat_template import ChatTemplate
from services.gateway.text.tool_calls import ToolFormat


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a chat says of tools.

    Attributes:
        tools: those that may be called; at least one.
        shown: those that the template shows to the model.
        demand: whether one must be called.
        format: how the model writes calls.
    """

    tools: Sequence[Tool]
    shown: Sequence[Tool]
    demand: Demand
    format: ToolFormat

    @property
    def names(self) -> frozenset[str]:
        """Of the tools that may be called."""
        return frozenset(tool.function.name for tool in self.tools)


def chat_tools(body: ChatBody, template: ChatTemplate) -> ToolUse | None:
    """Return the use of tools; None: none is called.

    A demanded call is enforced by a grammar, so it needs no template that shows tools: the
    answer is then one JSON object.

    Raises:
        BatonError: INVALID_ARGUMENT: what is asked for cannot be had.
    """
    choice, tools = body.tool_choice, body.tools or []
    _check_names(tools)
    if choice == "none":
        return None
    if not tools:
        if choice not in (None, "auto"):
            raise bad_field("tool_choice", "there are no tools to call")
        return None
    if choice in (None, "auto"):
        format = check_tools(tools, template)
        return ToolUse(tools, tools, Demand.OPTIONAL, format)
    demand = Demand.ONE if body.parallel_tool_calls is False else Demand.SOME
    called = tools
    if isinstance(choice, NamedToolChoice):
        demand = Demand.ONE
        called = [tool for tool in tools if tool.function.name == choice.function.name]
        if not called:
            raise bad_field("tool_choice.function.name", f"{choice.function.name!r} is not among the tools")
    shown = tools if template.takes_tools else []
    return ToolUse(called, shown, demand, template.tool_format or ToolFormat.LLAMA3)


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


def _check_names(tools: Sequence[Tool]) -> None:
    names: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.function.name in names:
            raise bad_field(f"tools[{i}].function.name", f"{tool.function.name!r} is there twice")
        names.add(tool.function.name)
