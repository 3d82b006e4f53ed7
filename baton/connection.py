"""How a client reaches a gateway: in the open, or over TLS, with a key or without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from baton.errors import UnavailableError

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client shows and believes.

    Attributes:
        api_key: sent with each call; empty: none.
        ca: PEM file of authorities whose certificates are believed; empty: no TLS.
        cert, key: PEM files of a peer's own certificate, for a registry port; empty: none.
        server_name: name that the other side's certificate must have; empty: its host.
    """

    api_key: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""

    @property
    def metadata(self) -> Metadata:
        """What goes with each call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    def channel(self, address: str) -> grpc.Channel:
        """Open a channel.

        Raises:
            UnavailableError: a file cannot be read.
        """
        if not self.ca:
            return grpc.insecure_channel(address)
        return grpc.secure_channel(address, self._tls(), options=self._options())

    def aio_channel(self, address: str) -> grpc.aio.Channel:
        """Open a channel for asyncio; raises as `channel`."""
        if not self.ca:
            return grpc.aio.insecure_channel(address)
        return grpc.aio.secure_channel(address, self._tls(), options=self._options())

    def _tls(self) -> grpc.ChannelCredentials:
        try:
            cert = Path(self.cert).read_bytes() if self.cert else None
            key = Path(self.key).read_bytes() if self.key else None
            return grpc.ssl_channel_credentials(Path(self.ca).read_bytes(), key, cert)
        except OSError as error:
            raise UnavailableError(f"{error.filename}: {error.strerror}", "UNREACHABLE") from error

    def _options(self) -> list[tuple[str, str]]:
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []


OPEN = Credentials()
