"""Schemas whose sentences are of bounded length, with a question that each may answer.

Bounded, so that an answer within max_tokens ends by itself, whatever the model says.
"""

from __future__ import annotations

from typing import Any

MAX_TOKENS = 400


def record(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def text(most: int, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": most, **more}


def whole(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def several(items: dict[str, Any], most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


PLACE = record(city=text(20), country={"enum": ["France", "Česko", "日本", "Côte d'Ivoire"]})

QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("Describe a person.", record(name=text(24), age=whole(0, 120), married={"type": "boolean"})),
    ("List three colours.", record(colours=several(text(12), 3, least=3))),
    (
        "Where does Ana live, and where did she live before?",
        record(name=text(20), home=PLACE, before=several(PLACE, 2)),
    ),
    (
        "What is the weather like?",
        record(sky={"enum": ["☀️ sunny", "🌧 rain", "❄️ snow"]}, degrees=whole(-40, 50)),
    ),
    (
        "Give me an order of two things.",
        record(
            id=text(11, pattern="^[A-Z]{3}-[0-9]{4,7}$"),
            things=several(record(what=text(16), count=whole(1, 9), price={"enum": [0.5, 1, 2.25]}), 2, 1),
            note={"anyOf": [text(30), {"type": "null"}]},
        ),
    ),
    (
        "Name a film and when it was shown.",
        record(title=text(30, minLength=1), day={"type": "string", "format": "date"}, stars=whole(1, 5)),
    ),
    (
        "Draw a small tree.",
        {
            "$ref": "#/$defs/node0",
            "$defs": {
                "node0": record(label=text(8), children=several({"$ref": "#/$defs/node1"}, 2)),
                "node1": record(label=text(8), children=several({"$ref": "#/$defs/node2"}, 2)),
                "node2": record(label=text(8)),
            },
        },
    ),
    (
        "Greet me in a language of your choice.",
        record(
            language={"enum": ["日本語", "Ελληνικά", "👋🏽", 'a "b" \\ c\nd']},
            greeting=text(20),
        ),
    ),
    ("Is water wet?", {"anyOf": [{"const": "yes"}, {"const": "no"}, record(why=text(40))]}),
    (
        "What may I set?",
        {
            "type": "object",
            "properties": {"a": whole(0, 9), "b": {"type": "boolean"}, "c": several(whole(-3, 3), 4)},
            "required": ["a"],
            "additionalProperties": False,
        },
    ),
]
