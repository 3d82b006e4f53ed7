"""The vault's Unix socket."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import grpc

from baton.v1 import vault_pb2_grpc
from services.common.interceptor import StatusInterceptor
from services.common.server import allow_all, ignore_error, no_translation
from services.vault.servicer import VaultServicer

_MAX_PATH_BYTES = 107  # sun_path, and the NUL after it


class VaultServer:
    """Serves VaultService on a socket that only this user can open.

    Raises:
        OSError: another vault is there, or the path cannot be bound; names it.
    """

    def __init__(self, socket: str, servicer: VaultServicer) -> None:
        self._path = Path(socket)
        if len(os.fsencode(socket)) > _MAX_PATH_BYTES:
            raise OSError(f"socket: {socket} is longer than {_MAX_PATH_BYTES} bytes")
        self._lock = _lock(self._path.with_name(f"{self._path.name}.lock"))
        self._server = grpc.aio.server(
            interceptors=[StatusInterceptor(no_translation, ignore_error, allow_all)]
        )
        vault_pb2_grpc.add_VaultServiceServicer_to_server(servicer, self._server)
        mask = os.umask(0o177)
        try:
            self._path.unlink(missing_ok=True)  # left behind by a vault that was killed
            self._server.add_insecure_port(f"unix:{socket}")
        except (RuntimeError, OSError) as error:
            os.close(self._lock)
            raise OSError(f"socket: cannot listen on {socket}: {error}") from error
        finally:
            os.umask(mask)

    async def start(self) -> None:
        """Answer calls."""
        await self._server.start()

    async def stop(self) -> None:
        """End all calls and remove the socket."""
        await self._server.stop(0)
        self._path.unlink(missing_ok=True)
        os.close(self._lock)


def _lock(path: Path) -> int:
    """Hold a file until the process ends, so that two vaults never share a socket."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise OSError(f"socket: another vault listens on {path.with_suffix('')}") from None
    return fd
