"""The vaults of a local cluster: one a GPU, each shared by the workers on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Prefill computes for decode on the same pool in decode's own blocks, and needs few of its own.
_WEIGHTS = {"prefill": 1, "decode": 15, "both": 15}


@dataclass(frozen=True, slots=True)
class LocalVault:
    """One vault.

    Attributes:
        gpu: number of its GPU; None: the default one, or none at all.
        socket: path that workers attach to.
        pool_bytes: of its KV pool.
        roles: how many workers of each role are to share it.
    """

    gpu: int | None
    socket: Path
    pool_bytes: int
    roles: Counter[str]

    @property
    def name(self) -> str:
        """Name of the process."""
        return self.socket.name

    def flags(self) -> list[str]:
        """What the vault is started with, beside the model."""
        gpu = [] if self.gpu is None else ["--gpu", str(self.gpu)]
        return ["--socket", str(self.socket), "--kv-bytes", str(self.pool_bytes), *gpu]

    def worker_flags(self, role: str) -> list[str]:
        """What a worker that attaches to it is started with; its share, prefill's being the smaller."""
        whole = sum(_WEIGHTS[name] * count for name, count in self.roles.items())
        share = self.pool_bytes * _WEIGHTS[role] // whole
        return ["--vault", str(self.socket), "--kv-bytes", str(share)]


def plan(
    pool_bytes: int, run_dir: Path, roles: Sequence[str], gpus: Sequence[int]
) -> dict[int | None, LocalVault]:
    """Return the vault of each GPU that workers get.

    Args:
        pool_bytes: of each vault's KV pool.
        roles: of the workers, in the order in which they are started.
        gpus: that they get by turns; empty: none is named to them, and they share one vault.
    """
    turns: Sequence[int | None] = gpus or (None,)
    on: dict[int | None, Counter[str]] = {}
    for number, role in enumerate(roles):
        on.setdefault(turns[number % len(turns)], Counter())[role] += 1
    return {
        gpu: LocalVault(gpu, run_dir / f"vault-{number}", pool_bytes, counts)
        for number, (gpu, counts) in enumerate(on.items())
    }
