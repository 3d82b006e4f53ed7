"""Which worker of a local cluster shares which vault, and how much of it."""

from __future__ import annotations

from pathlib import Path

from baton.vaults import plan

POOL = 16_000


def share(flags: list[str]) -> int:
    return int(flags[flags.index("--kv-bytes") + 1])


def test_one_vault_where_no_gpu_is_named(tmp_path: Path) -> None:
    vaults = plan(POOL, tmp_path, ["prefill", "decode"], ())
    assert list(vaults) == [None]
    vault = vaults[None]
    socket = str(tmp_path / "vault-0")
    assert (vault.name, vault.flags()) == ("vault-0", ["--socket", socket, "--kv-bytes", "16000"])
    assert vault.worker_flags("prefill") == ["--vault", socket, "--kv-bytes", "1000"]
    assert vault.worker_flags("decode") == ["--vault", socket, "--kv-bytes", "15000"]


def test_a_vault_for_each_gpu_and_no_byte_promised_twice(tmp_path: Path) -> None:
    roles = ["prefill", "prefill", "decode", "both", "both"]
    vaults = plan(POOL, tmp_path, roles, (3, 5))
    assert [vaults[gpu].flags()[-2:] for gpu in (3, 5)] == [["--gpu", "3"], ["--gpu", "5"]]
    assert vaults[3].socket != vaults[5].socket
    for gpu, on_it in ((3, ["prefill", "decode", "both"]), (5, ["prefill", "both"])):
        shares = [share(vaults[gpu].worker_flags(role)) for role in on_it]
        assert sum(shares) <= POOL < sum(shares) + len(shares)
        assert shares[0] < min(shares[1:])


def test_prefill_alone_on_a_gpu_has_all_of_it(tmp_path: Path) -> None:
    vaults = plan(POOL, tmp_path, ["prefill", "decode"], (0, 1))
    assert [share(vaults[gpu].worker_flags(role)) for gpu, role in ((0, "prefill"), (1, "decode"))] == [
        POOL,
        POOL,
    ]
