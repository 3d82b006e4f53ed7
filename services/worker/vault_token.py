"""The token that a worker must show, in a file that only its owner can read."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

METADATA_KEY = "baton-vault-token"
_MIN_CHARACTERS = 16


def token_path(socket: str, token_file: str) -> Path:
    """Where the token of a vault is; an empty `token_file` means beside the socket."""
    return Path(token_file or f"{socket}.token")


def read_token(path: Path) -> str:
    """Read a token.

    Raises:
        ValueError: the file is missing, too short to be a token, or open to others; names it.
    """
    try:
        mode, token = path.stat().st_mode, path.read_text().strip()
    except OSError as error:
        raise ValueError(f"token_file: cannot read {path}: {error.strerror}") from error
    if mode & 0o077:
        raise ValueError(f"token_file: {path} is open to others (mode {mode & 0o777:o}); chmod 600 it")
    if len(token) < _MIN_CHARACTERS:
        raise ValueError(f"token_file: {path} has {len(token)} characters, at least {_MIN_CHARACTERS} needed")
    return token


def make_token(path: Path) -> str:
    """Read a token, or make one if there is no file.

    Raises:
        ValueError: as read_token, or the file cannot be made.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_token(path)
    except OSError as error:
        raise ValueError(f"token_file: cannot make {path}: {error.strerror}") from error
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    return read_token(path)


def is_token(shown: str | bytes | None, token: str) -> bool:
    """Compare in a time that does not depend on where the two differ."""
    given = shown.encode() if isinstance(shown, str) else shown or b""
    return hmac.compare_digest(given, token.encode())
