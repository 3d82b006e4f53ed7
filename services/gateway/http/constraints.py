"""From a body's response_format, structured_outputs and tools to the grammar of its answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from baton.v1.sampling_pb2 import Choice, Grammar
from services.gateway.constraints.grammar import json_rule, lower_grammar
from services.gateway.constraints.tool_calls import CallableTool, Demand, calls_lark
from services.gateway.http.constraint_schema import ResponseFormat, StructuredOutputs, TextSettings
from services.gateway.http.schema import FunctionSchema, GenerationBody
from services.gateway.http.tools import ToolUse
from services.gateway.http.values import Json
from services.gateway.sampling import bad_field
from services.gateway.text.tokenizer import Tokenizer

_ANY_OBJECT: Mapping[str, Json] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """The grammar of an answer, and the field of the body that asked for it."""

    grammar: Grammar
    field: str


def body_constraint(body: GenerationBody) -> Constraint | None:
    """Return what response_format or structured_outputs asks for.

    Raises:
        BatonError: INVALID_ARGUMENT: both, or not exactly one kind.
    """
    asked = _response_format(body.response_format) if body.response_format else None
    if body.structured_outputs is None:
        return asked
    if asked is not None:
        raise bad_field("structured_outputs", "either this or response_format, not both")
    return _structured_outputs(body.structured_outputs)


async def with_calls(
    asked: Constraint | None, use: ToolUse | None, tokenizer: Tokenizer
) -> Constraint | None:
    """Return what a body asks for, calls of tools included.

    Args:
        asked: of the answer's text.
    Raises:
        BatonError: INVALID_ARGUMENT: a schema is not valid; names the tool.
    """
    if use is None:
        return asked
    is_demanded = use.demand is not Demand.OPTIONAL
    if not is_demanded and asked is None and not any(tool.function.strict for tool in use.tools):
        return None
    if asked is not None and asked.grammar.WhichOneof("kind") != "json_schema" and not is_demanded:
        raise bad_field(asked.field, "together with tools only JSON can be asked for")
    tools: list[CallableTool] = []
    for tool in use.tools:
        function = tool.function
        schema = _arguments(function) if is_demanded or function.strict else _ANY_OBJECT
        await lower_grammar(_json(schema), f"{use.fields[function.name]}.parameters")
        tools.append(CallableTool(function.name, schema))
    answer = None
    if asked is not None and not is_demanded:
        await lower_grammar(asked.grammar, asked.field)
        answer = json_rule(json.loads(asked.grammar.json_schema))
    return Constraint(Grammar(lark=calls_lark(use.format, tools, use.demand, tokenizer, answer)), "tools")


def text_constraint(settings: TextSettings | None) -> Constraint | None:
    """Return what the `text` of a response asks for."""
    format = settings.format if settings else None
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return Constraint(_json(_ANY_OBJECT), "text.format")
    if format.name is None:
        raise bad_field("text.format.name", "is needed with json_schema")
    if format.json_schema is None:
        raise bad_field("text.format.schema", "is needed with json_schema")
    return Constraint(_json(format.json_schema), "text.format.schema")


def _response_format(format: ResponseFormat) -> Constraint | None:
    if format.type != "json_schema" and format.json_schema is not None:
        raise bad_field("response_format.json_schema", f'has no place in type "{format.type}"')
    if format.type == "text":
        return None
    if format.type == "json_object":
        return Constraint(_json(_ANY_OBJECT), "response_format")
    if format.json_schema is None:
        raise bad_field("response_format.json_schema", "is needed with this type")
    schema = format.json_schema.json_schema
    return Constraint(_json(_ANY_OBJECT if schema is None else schema), "response_format.json_schema.schema")


def _structured_outputs(asked: StructuredOutputs) -> Constraint:
    field = "structured_outputs"
    found: list[Constraint] = []
    if asked.json_schema is not None:
        text = asked.json_schema
        grammar = Grammar(json_schema=text) if isinstance(text, str) else _json(text)
        found.append(Constraint(grammar, f"{field}.json"))
    if asked.json_object:
        found.append(Constraint(_json(_ANY_OBJECT), f"{field}.json_object"))
    if asked.regex is not None:
        found.append(Constraint(Grammar(regex=asked.regex), f"{field}.regex"))
    if asked.grammar is not None:
        found.append(Constraint(Grammar(lark=asked.grammar), f"{field}.grammar"))
    if asked.choice is not None:
        found.append(Constraint(Grammar(choice=Choice(texts=asked.choice)), f"{field}.choice"))
    if len(found) != 1:
        raise bad_field(
            field, f"exactly one of json, json_object, regex, grammar, choice is needed, got {len(found)}"
        )
    return found[0]


def _arguments(function: FunctionSchema) -> Mapping[str, Json]:
    """Return the schema of a function's arguments, which are an object even if it does not say so."""
    schema = function.parameters
    if schema is None:
        return {"type": "object", "additionalProperties": False}
    if not schema.keys() & {"type", "$ref", "anyOf", "allOf", "oneOf", "const", "enum"}:
        return {**schema, "type": "object"}
    return schema


def _json(schema: Mapping[str, Json]) -> Grammar:
    return Grammar(json_schema=json.dumps(schema))
