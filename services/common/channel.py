"""gRPC options that both ends of an internal connection must agree on, and the client's end."""

from __future__ import annotations

import grpc

from services.common.tls import Certificate, PeerRole, peer_name

KEEPALIVE_TIME_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000
MAX_MESSAGE_BYTES = 32 << 20

ChannelOptions = list[tuple[str, int | str]]


def client_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> ChannelOptions:
    """Options of a channel: a silent peer is noticed within 15 s, also while no call is under way."""
    return [
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A worker reborn at an address must not share a connection state with its predecessor.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def server_options(
    max_message_bytes: int = MAX_MESSAGE_BYTES, *, shares_port: bool = False
) -> ChannelOptions:
    """Options of a server: allows the pings of `client_options`.

    Args:
        shares_port: several processes listen on it; otherwise a taken port is an error.
    """
    return [
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", int(shares_port)),
    ]


def open_channel(
    address: str, certificate: Certificate | None = None, role: PeerRole = "worker"
) -> grpc.aio.Channel:
    """Open a channel to another service of the cluster; connects at the first call.

    Args:
        certificate: what to show; None: the connection is open.
        role: what the other side's certificate must say that it is.
    """
    options = client_options()
    if certificate is None:
        return grpc.aio.insecure_channel(address, options=options)
    options.append(("grpc.ssl_target_name_override", peer_name(role)))
    return grpc.aio.secure_channel(address, certificate.channel_credentials(), options=options)
