"""Who may attach, what it gets, and how it loses it again."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import BatonError, ErrorReason
from services.vault.vault import Vault
from services.worker.memory import VaultMemory
from services.worker.vault_lease import VaultLease
from tests.integration.vault.conftest import POOL_BLOCKS, RunningVault
from tests.support.workers import eventually, prefill_worker

ATTACH = """
import asyncio, sys
from services.worker.vault_lease import VaultLease
async def main():
    lease = await VaultLease.attach(sys.argv[1], "", "victim", "i1", sys.argv[2], 0)
    print("attached", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@asynccontextmanager
async def attached(
    vault: RunningVault, worker_id: str = "w", num_blocks: int = 0, incarnation: str = "i1"
) -> AsyncIterator[VaultLease]:
    holdings = vault.vault.holdings
    lease = await VaultLease.attach(
        vault.config.socket,
        "",
        worker_id,
        incarnation,
        holdings.fingerprint,
        num_blocks * holdings.block_bytes,
    )
    try:
        yield lease
    finally:
        await lease.close()


def held(vault: RunningVault) -> list[range]:
    return [share.blocks for share in vault.vault.shares.held]


async def test_two_workers_see_one_memory(vault: RunningVault) -> None:
    async with attached(vault, "a", 40) as first, attached(vault, "b") as second:
        assert (first.first_block, first.num_blocks) == (0, 40)
        assert (second.first_block, second.num_blocks) == (40, POOL_BLOCKS - 40)
        assert first.weights is None
        mine, others = VaultMemory(first), VaultMemory(second)
        assert mine.borrowed is not None
        assert mine.borrowed.pool_blocks == POOL_BLOCKS
        (view,), (other,) = (
            [np.frombuffer(place.memory, np.uint8) for place in memory.places.values()]  # type: ignore[arg-type]
            for memory in (mine, others)
        )
        assert len(view) == POOL_BLOCKS * vault.vault.holdings.block_bytes
        view[12345] = 77
        assert other[12345] == 77
        assert mine.places.keys() == others.places.keys() == {"attention"}
    await eventually(lambda: not held(vault))


async def test_only_the_socket_and_the_token_of_this_user_open_it(vault: RunningVault) -> None:
    mode = Path(vault.config.socket).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert mode & 0o777 == 0o600
    token = Path(f"{vault.config.socket}.token")
    assert token.stat().st_mode & 0o777 == 0o600
    token.write_text("another token of good length\n")
    with pytest.raises(BatonError, match="baton-vault-token: missing, or not this vault's") as refused:
        async with attached(vault):
            pass
    assert refused.value.reason is ErrorReason.UNAUTHENTICATED
    assert not held(vault)


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"fingerprint": "f" * 32}, ErrorReason.LAYOUT_MISMATCH, "another model, dtype or block size"),
        ({"worker_id": ""}, ErrorReason.INVALID_ARGUMENT, "worker_id: must not be empty"),
        ({"kv_bytes": 5}, ErrorReason.INVALID_ARGUMENT, "kv_bytes: 5 holds no block"),
        ({"kv_bytes": 1 << 40}, ErrorReason.OUT_OF_BLOCKS, "in a row are wanted; the vault has 96"),
    ],
)
async def test_what_cannot_be_is_refused_with_its_reason(
    vault: RunningVault, change: dict[str, str | int], reason: ErrorReason, message: str
) -> None:
    asked: dict[str, str | int] = {
        "worker_id": "w",
        "incarnation": "i1",
        "fingerprint": vault.vault.holdings.fingerprint,
        "kv_bytes": 0,
    }
    with pytest.raises(BatonError, match=message) as refused:
        await VaultLease.attach(vault.config.socket, "", **(asked | change))  # type: ignore[arg-type]
    assert refused.value.reason is reason
    assert not held(vault)


async def test_nobody_listens(vault: RunningVault, tmp_path: Path) -> None:
    token = tmp_path / "none.token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    with pytest.raises(BatonError, match="none"):
        await VaultLease.attach(str(tmp_path / "none"), "", "w", "i1", "f", 0)


async def test_a_killed_workers_share_comes_back_after_it_settled(vault: RunningVault) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ATTACH, vault.config.socket, vault.vault.holdings.fingerprint,
        stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.readline(), 30) == b"attached\n"
    assert held(vault) == [range(POOL_BLOCKS)]
    child.send_signal(signal.SIGKILL)
    loop = asyncio.get_running_loop()
    await child.wait()
    await eventually(lambda: not held(vault))
    freed = loop.time()
    async with attached(vault, "victim", incarnation="i2") as reborn:
        assert reborn.num_blocks == POOL_BLOCKS
        # The clock of the share began a moment before it was seen to be gone.
        assert loop.time() - freed > vault.config.settle_s - 0.1


async def test_a_closing_vault_asks_its_workers_to_leave(tiny_model: Path, vault: RunningVault) -> None:
    async with prefill_worker(vault.engine(40), vault=vault.config.socket) as worker:
        assert worker.host.lost == ""
        assert worker.host.built.num_blocks == 40
        stopping = asyncio.create_task(vault.vault._servicer.close(5.0))
        assert await asyncio.wait_for(worker.lost(), 5) == "the vault is gone"
        assert not stopping.done()
    assert await stopping


async def test_one_vault_a_socket(vault: RunningVault) -> None:
    with pytest.raises(OSError, match="another vault listens on"):
        await Vault(vault.config).start()
    async with attached(vault) as lease:
        assert lease.num_blocks == POOL_BLOCKS


async def test_a_socket_that_a_killed_vault_left_is_taken_over(
    vault: RunningVault, tmp_path: Path, tiny_model: Path
) -> None:
    stale = tmp_path / "stale"
    stale.touch()
    config = dataclasses.replace(vault.config, socket=str(stale))
    again = Vault(config)
    await again.start()
    async with attached(RunningVault(again, config, tiny_model)) as lease:
        assert lease.num_blocks == POOL_BLOCKS
    await again.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: {"socket": str(path / ("x" * 120))}, "longer than 107 bytes"),
        (lambda path: {"socket": str(path / "no" / "vault")}, "token_file: cannot make"),
        (lambda path: {"kv_bytes": 10}, "kv_bytes: 10 holds no block"),
        (lambda path: {"model": str(path / "none")}, "no such file"),
    ],
)
async def test_a_vault_that_cannot_start_says_why(
    vault: RunningVault, tmp_path: Path, change: Callable[[Path], dict[str, str | int]], message: str
) -> None:
    config = dataclasses.replace(vault.config, socket=str(tmp_path / "other"))
    with pytest.raises(Exception, match=message):
        await Vault(dataclasses.replace(config, **change(tmp_path))).start()  # type: ignore[arg-type]
