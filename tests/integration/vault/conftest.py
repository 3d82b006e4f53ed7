from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.config import EngineConfig
from services.vault.config import VaultConfig
from services.vault.vault import Vault
from tests.support.tiny_models import save_tiny_llama
from tests.support.workers import engine_config

POOL_BLOCKS = 96


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@dataclasses.dataclass
class RunningVault:
    """A vault of POOL_BLOCKS blocks in the test's process."""

    vault: Vault
    config: VaultConfig
    model: Path

    def engine(self, num_blocks: int, **settings: int | str | bool) -> EngineConfig:
        """Settings of a worker with a share of so many blocks."""
        return engine_config(self.model, num_blocks=num_blocks, **settings)


def vault_config(model: Path, directory: Path) -> VaultConfig:
    engine = engine_config(model, num_blocks=POOL_BLOCKS)
    return VaultConfig(
        socket=str(directory / "vault"),
        model=engine.model,
        model_name=engine.model_name,
        backend="cpu",
        block_size=engine.block_size,
        kv_bytes=engine.kv_bytes,
        settle_s=0.3,
        drain_timeout_s=2.0,
        metrics_port=-1,
    )


@pytest.fixture
async def vault(tiny_model: Path, tmp_path: Path) -> AsyncIterator[RunningVault]:
    config = vault_config(tiny_model, tmp_path)
    made = Vault(config)
    await made.start()
    yield RunningVault(made, config, tiny_model)
    await made.stop()
    assert not Path(config.socket).exists()
