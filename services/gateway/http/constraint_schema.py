"""Bodies' fields that say what an answer must look like."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)


class NamedSchema(_Part):
    """A JSON schema; it is always enforced, `strict` or not."""

    name: str = Field(pattern=_NAME)
    description: str | None = None
    json_schema: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Part):
    """Text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class TextFormat(_Part):
    """As ResponseFormat, in the flat shape of /v1/responses."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(default=None, pattern=_NAME)
    description: str | None = None
    json_schema: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextSettings(_Part):
    """The `text` of /v1/responses."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class StructuredOutputs(_Part):
    """An extension, as in vLLM: exactly one of these."""

    json_schema: dict[str, JsonValue] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: Literal[True] | None = None


class FunctionName(_Part):
    """A function."""

    name: str


class NamedToolChoice(_Part):
    """Demands a call of one tool."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(_Part):
    """Some of the tools, of which one may or must be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedToolChoice] = Field(min_length=1)


class AllowedToolChoice(_Part):
    """Lets some of the tools be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class FlatToolChoice(_Part):
    """As NamedToolChoice, in the flat shape of /v1/responses."""

    type: Literal["function"]
    name: str


class FlatAllowedToolChoice(_Part):
    """As AllowedToolChoice, in the flat shape of /v1/responses."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FlatToolChoice] = Field(min_length=1)
