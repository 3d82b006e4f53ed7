"""From the names of gateways to their addresses: a headless service's name has one for each gateway."""

from __future__ import annotations

import asyncio
import ipaddress
import socket


async def resolve(address: str) -> list[str]:
    """Return "host:port" of everyone whom a "host:port" names, sorted.

    An IP address names itself. Of a name with both kinds of addresses those of IPv4 count:
    they are mostly two ways to the same gateways.

    Raises:
        OSError: the name is not known, or nobody answers for it.
    """
    host, _, port = address.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    else:
        return [address]
    by_family: dict[int, set[str]] = {}
    for family, _, _, _, endpoint in found:
        by_family.setdefault(family, set()).add(str(endpoint[0]))
    if socket.AF_INET in by_family:
        return sorted(f"{ip}:{port}" for ip in by_family[socket.AF_INET])
    return sorted(f"[{ip}]:{port}" for ip in by_family.get(socket.AF_INET6, ()))
