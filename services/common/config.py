"""Flags and environment variables, derived from the fields of frozen dataclasses.

A configuration is a dataclass whose fields are values or other such dataclasses;
nested ones are flattened, so every flag has one name:

    @dataclass(frozen=True, slots=True)
    class PrefillConfig:
        \"\"\"...

        Attributes:
            gateway: address of a gateway; several: repeat, or separate by commas.
        \"\"\"

        server: ServerConfig                # --host, --port, ...
        gateway: tuple[str, ...] = ()       # --gateway A --gateway B, BATON_PREFILL_GATEWAY=A,B

    config = parse_config(PrefillConfig, "prefill", argv)

A field's help is its metadata's "help", or its entry under "Attributes:" in the
dataclass's docstring. A flag wins over BATON_<SECTION>_<FIELD>, which wins over
the default. Types: str, int, float, bool, tuple[str, ...]. A field whose name ends
in _bytes takes K, M, G (powers of 1024).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field
from typing import TypeVar

Config = TypeVar("Config")
Value = str | int | float | bool | tuple[str, ...]
_Fields = Iterator[tuple[Field[Value], type, str]]

_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_config(
    cls: type[Config],
    section: str,
    argv: Sequence[str],
    *,
    description: str = "",
    environ: Mapping[str, str] | None = None,
    errors: tuple[type[Exception], ...] = (ValueError,),
) -> Config:
    """Build a configuration from flags and environment.

    Args:
        section: "prefill" gives BATON_PREFILL_<FIELD>.
        errors: what `__post_init__` may raise; told as a usage error.
    Raises:
        SystemExit: --help, or a bad flag or variable (status 2, the message names it).
    """
    environ = os.environ if environ is None else environ
    parser = argparse.ArgumentParser(
        prog=f"baton serve {section}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Each flag is an environment variable too: --host is BATON_{section.upper()}_HOST.",
    )
    for field, kind, help_text in _fields(cls):
        _add_flag(parser, field, kind, help_text)
    given = vars(parser.parse_args(list(argv)))
    for field, kind, _ in _fields(cls):
        variable = f"BATON_{section}_{field.name}".upper()
        if given[field.name] is None and variable in environ:
            try:
                given[field.name] = _parse(field.name, kind, environ[variable])
            except ValueError as error:
                parser.error(f"environment variable {variable}: {error}")
        elif isinstance(given[field.name], list):
            given[field.name] = tuple(item for items in given[field.name] for item in items)
        if given[field.name] is None and field.default is MISSING and field.default_factory is MISSING:
            parser.error(f"{_flag(field.name)} (or {variable}) is required")
    try:
        return _build(cls, given)
    except errors as error:
        parser.error(str(error))


def _build(cls: type[Config], values: Mapping[str, Value | None]) -> Config:
    hints = typing.get_type_hints(cls)
    chosen: dict[str, object] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[field.name]):
            chosen[field.name] = _build(hints[field.name], values)
        elif values[field.name] is not None:
            chosen[field.name] = values[field.name]
    return cls(**chosen)


def _fields(cls: type[Config]) -> _Fields:
    hints = typing.get_type_hints(cls)
    helps = _attribute_docs(cls.__doc__ or "")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _fields(hints[field.name])
        else:
            yield field, hints[field.name], field.metadata.get("help") or helps.get(field.name, "")


def _attribute_docs(docstring: str) -> dict[str, str]:
    """Return the entries under "Attributes:", continuation lines joined."""
    _, _, attributes = docstring.partition("Attributes:\n")
    docs: dict[str, str] = {}
    name = ""
    for line in attributes.splitlines():
        entry = re.match(r"        (\w+): (.*)", line)
        if entry:
            name, docs[entry[1]] = entry[1], entry[2]
        elif line.startswith("            ") and name:
            docs[name] += " " + line.strip()
        else:
            break
    return docs


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_flag(parser: argparse.ArgumentParser, field: Field[Value], kind: type, help_text: str) -> None:
    default = "" if field.default in (MISSING, "", ()) else f" (default {_show(field.default)})"
    required = field.default is MISSING and field.default_factory is MISSING
    text = (help_text + (" (required)" if required else default)).replace("%", "%%")
    if kind is bool:
        parser.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    is_list = typing.get_origin(kind) is tuple

    def convert(text: str) -> Value:
        try:
            return _parse(field.name, kind, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    metavar = "ADDR" if field.name == "gateway" else field.name.rsplit("_", 1)[-1].upper()
    parser.add_argument(
        _flag(field.name),
        action="append" if is_list else "store",
        type=convert,
        default=None,
        metavar=metavar,
        help=text,
    )


def _show(default: object) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _parse(name: str, kind: type, text: str) -> Value:
    """Parse one value; a ValueError says what was expected."""
    if isinstance(kind, types.GenericAlias):
        return tuple(item.strip() for item in text.split(",") if item.strip())
    if kind is bool:
        if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            raise ValueError(f"expected true or false, got {text!r}")
        return text.lower() in ("1", "true", "yes", "on")
    if kind is int and name.endswith("_bytes"):
        size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
        if size is None:
            raise ValueError(f"expected a size such as 536870912 or 512M, got {text!r}")
        return int(float(size[1]) * _SIZES[size[2]])
    if kind in (int, float):
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            raise ValueError(
                f"expected {'a whole number' if kind is int else 'a number'}, got {text!r}"
            ) from None
    return text
