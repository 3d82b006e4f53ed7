"""Certificates of a cluster: its own authority, and what each service shows.

ca.pem       whom clients and services believe       ca.key      sign more with it; keep it away
server.pem   the gateway's public ports: host names  server.key
gateway.pem  the gateway to workers: gateway.baton   gateway.key
worker.pem   workers to all others: worker.baton     worker.key
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from baton.errors import ClusterError

_CA_DAYS = 3650
_SKEW = datetime.timedelta(hours=1)


class CertificateAuthority:
    """An authority, and the certificates that it signs; P-256 keys.

    Args:
        folder: where the files go; those that are there are never overwritten.
    Raises:
        ClusterError: the folder cannot be written, or holds a file of that name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("baton cluster authority")
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(self._name, self._name, self._key, _CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._certificate = certificate
        self._write("ca", self._key, certificate)

    def issue(self, name: str, hosts: Sequence[str], days: int) -> None:
        """Write NAME.pem and NAME.key, valid for `hosts` (names and addresses), as server and client."""
        key = ec.generate_private_key(ec.SECP256R1())
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            _builder(_name(f"baton {name}"), self._name, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
            .add_extension(uses, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        self._write(name, key, certificate)

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._create(f"{name}.key", secret, 0o600)
        self._create(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def _create(self, name: str, content: bytes, mode: int) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:
            raise ClusterError(f"{self._folder / name}: {error.strerror}; nothing is overwritten") from error
        with open(handle, "wb") as file:
            file.write(content)


def make_certificates(folder: Path, hosts: Sequence[str], days: int) -> None:
    """Write all that a cluster needs into `folder`.

    Args:
        hosts: names and addresses by which clients reach the gateway.
        days: how long the services' certificates are valid.
    Raises:
        ClusterError: a file is there already, or cannot be written.
    """
    authority = CertificateAuthority(folder)
    authority.issue("server", hosts, days)
    authority.issue("gateway", ["gateway.baton"], days)
    authority.issue("worker", ["worker.baton"], days)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )
