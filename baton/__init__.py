"""Client, command and local cluster of Baton.

Names are imported when first used, so that `from baton.v1 import kv_pb2` costs nothing more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from baton.aio import AsyncClient
    from baton.client import Client
    from baton.cluster import LocalCluster
    from baton.generation import Answer, Event

__all__ = ["Answer", "AsyncClient", "Client", "Event", "LocalCluster"]

_MODULES = {
    "Answer": "baton.generation",
    "AsyncClient": "baton.aio",
    "Client": "baton.client",
    "Event": "baton.generation",
    "LocalCluster": "baton.cluster",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'baton' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
