"""Who calls: API keys, and what a key's prompts may share.

Two tenants never meet in a prefix cache: the salt that goes into every block's name is
made from the tenant, here, on the server. A client's own `cache_salt` divides its
tenant's cache further and cannot name another's, for it is hashed along.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from services.common.errors import BatonError, ErrorReason
from services.common.keys import KeyFileError, KeyRing, Limits
from services.common.logs import log

WATCH_S = 0.5
_SCHEME = "bearer "

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is.

    Attributes:
        key_id: of the key that was shown; empty: keys are not asked for.
        tenant: whose cached prompts it may use, beside the common ones.
        shares_cache: uses the cache that all such keys have in common.
        sees_cluster: may look at the cluster as a whole.
        limits: of this key.
    """

    key_id: str = ""
    tenant: str = ""
    shares_cache: bool = True
    sees_cluster: bool = True
    limits: Limits = field(default_factory=Limits)

    def check_sees_cluster(self) -> None:
        """Raise PERMISSION_DENIED if this caller may not look at the cluster."""
        if not self.sees_cluster:
            raise BatonError(
                ErrorReason.PERMISSION_DENIED, "this key may not look at the cluster (--sees-cluster)"
            )

    def cache_salt(self, asked: str) -> str:
        """Return the salt of this caller's blocks.

        Args:
            asked: the request's own; empty: none.
        """
        if not self.key_id or (self.shares_cache and not asked):
            return asked
        scope = "common" if self.shares_cache else f"tenant\0{self.tenant}"
        return hashlib.sha256(f"{scope}\0\0{asked}".encode()).hexdigest()


ANYBODY = Caller()


class Callers:
    """Knows callers by the keys that they show.

    Args:
        keys_file: see services.common.keys; None: keys are not asked for.
    Raises:
        KeyFileError: the file cannot be used.
    """

    def __init__(self, keys_file: Path | None) -> None:
        self._file = keys_file
        self._ring = KeyRing([]) if keys_file is None else KeyRing.read(keys_file)
        self._stamp = self._file_stamp()

    def identify(self, authorization: str) -> Caller:
        """Return the caller of an HTTP `Authorization` header, or of the metadata of that name.

        Raises:
            BatonError: UNAUTHENTICATED.
        """
        if self._file is None:
            return ANYBODY
        is_bearer = authorization[: len(_SCHEME)].lower() == _SCHEME
        key = self._ring.find(authorization[len(_SCHEME) :].strip()) if is_bearer else None
        if key is None:
            what = "the API key is not valid" if is_bearer else "an API key is needed"
            raise BatonError(
                ErrorReason.UNAUTHENTICATED, f"{what}; send it as 'authorization: Bearer baton_...'"
            )
        return Caller(key.key_id, key.tenant, key.shares_cache, key.sees_cluster, key.limits)

    def identify_call(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """Return the caller of an RPC. BatonError: as `identify`."""
        if self._file is None:
            return ANYBODY
        shown = dict(context.invocation_metadata() or ()).get("authorization", "")
        return self.identify(shown if isinstance(shown, str) else "")

    async def watch(self) -> None:
        """Follow the file for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self._file_stamp() != self._stamp:
                self.reload()

    def reload(self) -> None:
        """Read the file again; one that cannot be used changes nothing, and is told in the log."""
        if self._file is None:
            return
        self._stamp = self._file_stamp()
        try:
            self._ring = KeyRing.read(self._file)
        except KeyFileError as error:
            log(_logger, logging.ERROR, "keys not reloaded", error=str(error))
        else:
            log(_logger, logging.INFO, "keys reloaded", keys=len(self._ring.keys))

    def _file_stamp(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size
