"""API keys: a file of hashes that the `baton keys` command writes and gateways read.

A key is `baton_<id>_<secret>`. The id finds the entry; the secret has 256 random bits, so
that one SHA-256 of it is all that the file needs (nothing can be guessed, and checking
costs no time). The file holds no secret, and is replaced whole, never written in place.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

_KEY = re.compile(r"baton_([0-9a-f]{12})_([0-9A-Za-z_-]{43})")
_NO_HASH = hashlib.sha256(b"").hexdigest()


class KeyFileError(ValueError):
    """The file cannot be used; the message names it and the entry at fault."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key, or all together, may ask for at a gateway, all its processes together; 0: no limit.

    Attributes:
        max_requests: requests at once.
        max_tokens: tokens of prompts and expected answers at once.
        requests_per_minute: requests begun.
        tokens_per_minute: tokens of prompts and answers.
    """

    max_requests: int = 0
    max_tokens: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name}: must be a whole number of at least 0, got {value!r}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One entry.

    Attributes:
        key_id: public; in logs and metrics.
        tenant: who it belongs to; keys of one tenant share cached prompts.
        secret_hash: SHA-256 of the secret, hex.
        created: RFC 3339, UTC.
        revoked: when it was revoked; empty: it is valid.
        shares_cache: its prompts may use the cache that all such keys have in common.
        sees_cluster: may look at workers, metrics and other tenants' requests (never at their text).
    """

    key_id: str
    tenant: str
    secret_hash: str
    created: str
    revoked: str = ""
    shares_cache: bool = False
    sees_cluster: bool = False
    limits: Limits = field(default_factory=Limits)


class KeyRing:
    """Keys by id."""

    def __init__(self, keys: list[ApiKey]) -> None:
        self.keys = {key.key_id: key for key in keys}

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Read a file.

        Raises:
            KeyFileError: missing, unreadable or malformed.
        """
        try:
            entries: object = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise KeyFileError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise KeyFileError(f"{path}: not JSON: {error}") from error
        if not isinstance(entries, dict) or not isinstance(entries.get("keys"), list):
            raise KeyFileError(f'{path}: expected {{"keys": [...]}}')
        return cls([_entry(path, number, entry) for number, entry in enumerate(entries["keys"])])

    def write(self, path: Path) -> None:
        """Replace a file, readable by its owner alone unless it was more open before."""
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            json.dump({"keys": [asdict(key) for key in self.keys.values()]}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def find(self, text: str) -> ApiKey | None:
        """Return the valid key that a client showed; None: there is none. Compares in constant time."""
        parts = _KEY.fullmatch(text)
        key = self.keys.get(parts[1]) if parts else None
        shown = _hash(parts[2] if parts else "")
        is_right = hmac.compare_digest(shown, key.secret_hash if key else _NO_HASH)
        return key if key is not None and is_right and not key.revoked else None


@contextlib.contextmanager
def changing(path: Path) -> Iterator[KeyRing]:
    """Read a file, let the caller change `keys`, and write it; others who change it wait.

    Raises:
        KeyFileError, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ring = KeyRing.read(path) if path.exists() else KeyRing([])
        yield ring
        ring.write(path)


def create_key(
    tenant: str, limits: Limits, *, shares_cache: bool = False, sees_cluster: bool = False
) -> tuple[str, ApiKey]:
    """Return a new key, as the client shows it and as the file has it.

    Args:
        tenant: empty: the key is a tenant of its own.
    """
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    entry = ApiKey(key_id, tenant or key_id, _hash(secret), _now(), "", shares_cache, sees_cluster, limits)
    return f"baton_{key_id}_{secret}", entry


def revoked(key: ApiKey) -> ApiKey:
    """Return the entry of a key that is valid no more."""
    return replace(key, revoked=key.revoked or _now())


def _entry(path: Path, number: int, entry: object) -> ApiKey:
    where = f"{path}: keys[{number}]"
    if not isinstance(entry, dict):
        raise KeyFileError(f"{where}: not an object")
    values = cast(dict[str, object], dict(entry))
    try:
        limits = Limits(**values.pop("limits", {}))  # type: ignore[arg-type]
        key = ApiKey(**values, limits=limits)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise KeyFileError(f"{where}: {error}") from error
    for name in ("key_id", "tenant", "secret_hash"):
        value = getattr(key, name)
        if not isinstance(value, str) or not value:
            raise KeyFileError(f"{where}.{name}: must be a text, not empty")
    if re.fullmatch("[0-9a-f]{64}", key.secret_hash) is None:
        raise KeyFileError(f"{where}.secret_hash: must be 64 hex digits")
    flags = (key.shares_cache, key.sees_cluster)
    if not isinstance(key.revoked, str) or not all(isinstance(flag, bool) for flag in flags):
        raise KeyFileError(f"{where}: revoked must be a text, shares_cache and sees_cluster true or false")
    return key


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
