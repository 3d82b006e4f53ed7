from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from kvtransfer.host import SHM_DIR
from kvtransfer.locked_file import PREFIX
from tests.integration.kvtransfer.pools import on_gpus, on_host, require_gpus
from tests.integration.kvtransfer.rig import Rig, wait_until


def our_files() -> set[str]:
    return {path.name for path in SHM_DIR.glob(f"{PREFIX}test-{os.getpid()}-*")}


@pytest.fixture(
    params=[
        on_host("shared_memory"),
        on_host("zmq_tcp"),
        on_host("fake"),
        on_gpus("cuda_ipc", 0, 0),
        on_gpus("cuda_ipc", 0, 1),
        on_gpus("zmq_tcp", 0, 0),
    ]
)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    require_gpus(request.param)
    before = our_files()
    made = Rig(request.param)
    yield made
    made.close()
    assert our_files() <= before
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("kv-")])
