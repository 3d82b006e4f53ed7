from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kvtransfer.host import SHM_DIR
from kvtransfer.locked_file import PREFIX
from tests.integration.kvtransfer.rig import Rig, wait_until


def our_files() -> set[str]:
    return {path.name for path in SHM_DIR.glob(f"{PREFIX}test-*")}


@pytest.fixture(params=["shared_memory", "zmq_tcp", "fake"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    before = our_files()
    made = Rig(request.param)
    yield made
    made.close()
    assert our_files() <= before
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("kv-")])
