"""Typed access to a configuration of unknown origin; every error names file and field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from engine.errors import ModelLoadError


class ConfigFields:
    """A read-only view of a JSON object. A field that is null counts as absent."""

    def __init__(self, values: Mapping[str, object], origin: str) -> None:
        """`origin` is the file that errors name."""
        self._values = values
        self.origin = origin

    def fail(self, name: str, message: str) -> NoReturn:
        """Raise ModelLoadError for a field."""
        raise ModelLoadError(f"{self.origin}: {name}: {message}")

    def check(self, ok: bool, name: str, message: str) -> None:
        """Raise ModelLoadError for a field unless `ok`."""
        if not ok:
            self.fail(name, message)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer; an absent one without default is an error."""
        value = self._values.get(name)
        if value is None:
            value = default
        if value is None:
            self.fail(name, "is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.fail(name, f"must be a positive integer, got {value!r}")
        return value

    def optional_integer(self, name: str) -> int | None:
        """A positive integer, or None if absent."""
        return self.integer(name) if self.has(name) else None

    def number(self, name: str, default: float | None = None) -> float:
        """A number; an absent one without default is an error."""
        value = self._values.get(name)
        if value is None:
            value = default
        if value is None:
            self.fail(name, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(name, f"must be a number, got {value!r}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(name, f"must be true or false, got {value!r}")
        return value

    def string(self, name: str, default: str) -> str:
        """A string."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fail(name, f"must be a string, got {value!r}")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty if absent."""
        value = self._values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(name, f"must be a list of strings, got {value!r}")
        return tuple(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """An integer or a list of them; empty if absent."""
        value = self._values.get(name)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            self.fail(name, f"must be an integer or a list of integers, got {value!r}")
        return tuple(items)

    def child(self, name: str) -> ConfigFields | None:
        """A nested object, or None if absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(name, f"must be an object, got {value!r}")
        return ConfigFields(value, f"{self.origin}: {name}")
