"""Certificates: what a service shows to others, and whom it believes.

Services of one cluster know each other by role, not by address: a certificate's DNS
name is `gateway.baton` or `worker.baton`, and its issuer is the cluster's own
authority. So a worker's certificate opens no other worker and is no gateway's, and a
pod that gets a new address needs no new certificate.

Files are read again when they change: servers show a renewed certificate from the next
handshake on, clients with their next connection.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc

from services.common.logs import log

PeerRole = Literal["gateway", "worker"]
SAN_KEY = "x509_subject_alternative_name"
_Stamps = tuple[tuple[int, int], ...]

_logger = logging.getLogger(__name__)


def peer_name(role: PeerRole) -> str:
    """Return the DNS name in the certificates of a role."""
    return f"{role}.baton"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files.

    Attributes:
        cert, key: what the service shows.
        ca: authorities that the other side's certificate must come from; empty: anybody may connect.
    """

    cert: str
    key: str
    ca: str = ""

    def check(self, flags: tuple[str, ...]) -> None:
        """Check that the files are there and belong together.

        Args:
            flags: names of cert, key and ca, for messages.
        Raises:
            ValueError: names the flag and the file.
        """
        for flag, path in zip(flags, (self.cert, self.key, self.ca), strict=False):
            if not path:
                raise ValueError(f"{flag}: must be set, since {' and '.join(flags)} belong together")
            try:
                Path(path).read_bytes()
            except OSError as error:
                raise ValueError(f"{flag}: cannot read {path!r}: {error.strerror}") from error
        try:
            self.ssl_context()
        except ssl.SSLError as error:
            raise ValueError(
                f"{flags[0]}: {self.cert!r} and {self.key!r} are not a PEM certificate and its key: {error}"
            ) from error

    def ssl_context(self) -> ssl.SSLContext:
        """Return what a server needs that is not gRPC's; it asks no client for a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.cert, self.key)
        return context

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that follow the files; with `ca`, clients must show a certificate."""
        follower = _Follower(self)
        return grpc.dynamic_ssl_server_credentials(
            follower(), follower, require_client_authentication=bool(self.ca)
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return credentials of a client, as the files are now."""
        return grpc.ssl_channel_credentials(
            Path(self.ca).read_bytes(), Path(self.key).read_bytes(), Path(self.cert).read_bytes()
        )

    def stamps(self) -> _Stamps:
        """Return what changes when a file does."""
        found = (Path(path).stat() for path in (self.cert, self.key, self.ca) if path)
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in found)


class _Follower:
    """Gives gRPC the certificate anew when its files have changed; asked at each handshake."""

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._stamps = certificate.stamps()
        self._current = self.configuration()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        certificate = self._certificate
        return grpc.ssl_server_certificate_configuration(
            [(Path(certificate.key).read_bytes(), Path(certificate.cert).read_bytes())],
            root_certificates=Path(certificate.ca).read_bytes() if certificate.ca else None,
        )

    def __call__(self) -> grpc.ServerCertificateConfiguration:
        try:
            stamps = self._certificate.stamps()
            if stamps != self._stamps:
                self._certificate.ssl_context()  # half-written files are not taken
                self._current, self._stamps = self.configuration(), stamps
        except (OSError, ssl.SSLError) as error:
            log(_logger, logging.WARNING, "certificate not renewed", error=str(error))
        return self._current


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """Mutual TLS between the services of a cluster, and CURVE between its workers.

    Attributes:
        peer_cert: PEM certificate that this service shows to the cluster's others; its DNS name is
            gateway.baton or worker.baton (baton certs makes one). With it the data plane is encrypted too.
        peer_key: PEM key of peer_cert.
        peer_ca: PEM certificates of the authorities that sign the others'.
        insecure: listen beyond loopback without TLS or keys; whoever reaches the ports may use, read and
            impersonate the service.
    """

    peer_cert: str = ""
    peer_key: str = ""
    peer_ca: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        """Check the files."""
        if self.peer_cert or self.peer_key or self.peer_ca:
            Certificate(self.peer_cert, self.peer_key, self.peer_ca).check(
                ("peer_cert", "peer_key", "peer_ca")
            )

    @property
    def certificate(self) -> Certificate | None:
        """What this service shows to others of the cluster; None: connections are open."""
        return Certificate(self.peer_cert, self.peer_key, self.peer_ca) if self.peer_cert else None

    def check_reach(self, flag: str, host: str, missing: str) -> None:
        """Refuse to listen where others can reach a port that is not protected.

        Args:
            flag: name of the field that holds `host`.
            missing: the flags whose absence leaves the port open; empty: it is protected.
        Raises:
            ValueError: says why, and what to set.
        """
        if missing and not self.insecure and not is_loopback(host):
            raise ValueError(
                f"{flag}: refusing to listen on {host!r}, which other machines can reach, without {missing}; "
                "set them, or listen on 127.0.0.1, or say --insecure if the network itself is trusted"
            )
