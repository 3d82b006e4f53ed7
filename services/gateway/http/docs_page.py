"""GET /docs: the OpenAPI description as one page, which loads nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

from services.gateway.http.values import Json

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-top: 1px solid #8884 }
code { font-family: ui-monospace, monospace }
h2 { margin-top: 2.5rem }
summary { cursor: pointer }
"""
_LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minLength": "characters, at least",
    "maxItems": "entries, at most",
    "pattern": "matches",
}


def render_docs(document: Mapping[str, Json]) -> bytes:
    """Return the page of an OpenAPI document."""
    paths = _object(document["paths"])
    schemas = _object(_object(document["components"])["schemas"])
    links = "".join(f'<li><a href="#{escape(path)}"><code>{escape(path)}</code></a></li>' for path in paths)
    sections = "".join(_section(path, _object(item)) for path, item in paths.items())
    details = "".join(_schema(name, _object(schema)) for name, schema in schemas.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Baton: HTTP API</title>'
        f"<style>{_STYLE}</style></head><body><h1>Baton: HTTP API</h1>"
        '<p>Also as <a href="/openapi.json">OpenAPI 3.1</a>. With <code>"stream": true</code> an answer '
        "comes as server-sent events.</p>"
        f"<ul>{links}</ul>{sections}<h2>Schemas</h2>{details}</body></html>"
    ).encode()


def _section(path: str, item: Mapping[str, Json]) -> str:
    parts: list[str] = []
    for method, value in item.items():
        operation = _object(value)
        parts.append(
            f'<h2 id="{escape(path)}"><code>{method.upper()} {escape(path)}</code></h2>'
            f"<p>{escape(str(operation['summary']))}</p>"
        )
        if "requestBody" in operation:
            parts.append(f"<p>Body: {_content(_object(operation['requestBody']))}</p>")
        for status, answer in _object(operation["responses"]).items():
            name = "Otherwise" if status == "default" else status
            parts.append(f"<p>{name}: {_content(_object(answer))}</p>")
    return "".join(parts)


def _content(holder: Mapping[str, Json]) -> str:
    shown = [
        f"{_type(_object(_object(value)['schema']))} (<code>{escape(kind)}</code>)"
        for kind, value in _object(holder["content"]).items()
    ]
    return " or ".join(shown)


def _schema(name: str, schema: Mapping[str, Json]) -> str:
    required = schema.get("required")
    names = required if isinstance(required, Sequence) else ()
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{_type(_object(value))}</td>"
        f"<td>{'required' if field in names else ''}</td>"
        f"<td>{escape(str(_object(value).get('description', '')))}</td></tr>"
        for field, value in _object(schema.get("properties", {})).items()
    )
    about = escape(str(schema.get("description", "")))
    return (
        f'<details open id="{escape(name)}"><summary><b>{escape(name)}</b> {about}</summary>'
        f"<table><tr><th>field</th><th>type</th><th></th><th></th></tr>{rows}</table></details>"
    )


def _type(schema: Mapping[str, Json]) -> str:
    """Return a type for people, with links to other schemas."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        return f'<a href="#{escape(name)}">{escape(name)}</a>'
    for choice in ("const", "enum"):
        if choice in schema:
            values = schema[choice] if choice == "enum" else [schema[choice]]
            assert isinstance(values, Sequence)
            return " | ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    options = schema.get("anyOf")
    if isinstance(options, Sequence):
        return " | ".join(_type(_object(option)) for option in options)
    if schema.get("type") == "array":
        return f"list of ({_type(_object(schema.get('items', {})))})"
    limits = [f"{words} {escape(str(schema[name]))}" for name, words in _LIMITS.items() if name in schema]
    return escape(str(schema.get("type", "any"))) + (f" ({', '.join(limits)})" if limits else "")


def _object(value: Json) -> Mapping[str, Json]:
    assert isinstance(value, Mapping)
    return value
