"""What a step says of its layers while it runs: the KV is there when it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.backends.cuda.backend import CudaBackend
from engine.backends.cuda.layer_marks import marked_layers
from engine.config import EngineConfig
from engine.models.build import build_transformer
from engine.models.load import open_model
from engine.request import Request
from engine.runner.cuda.runner import CudaRunner
from engine.sampling_params import SamplingParams
from engine.step import MIN_TOKENS_TOLD_EARLY, ScheduledRow, SchedulerOutput
from tests.support.model_steps import create_group
from tests.support.tiny_families import create_family

BLOCK = 16
LENGTH = MIN_TOKENS_TOLD_EARLY + 9
WAIT_CYCLES = 2_000_000  # about a millisecond


def test_layers_are_final_when_they_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_family("mistral-window", tmp_path, head_dim=64)
    config = EngineConfig(str(tmp_path), "tiny", backend="cuda", block_size=BLOCK, max_running=4).resolved()
    files = open_model(str(tmp_path))
    backend = CudaBackend(torch.bfloat16)
    model = build_transformer(files.architecture, files.source, backend, 2 * LENGTH)
    pool = backend.allocate_pool(create_group(files.architecture, BLOCK, "bfloat16"), 272, None)
    pool.blocks.fill_(float("nan"))
    runner = CudaRunner(config, files.architecture.eos_token_ids, model, backend, pool, 2 * LENGTH)
    store = backend.rope_kv_store

    def store_late(*args: object) -> torch.Tensor:
        torch.cuda._sleep(WAIT_CYCLES)  # whoever reads too early finds poison
        return store(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(backend, "rope_kv_store", store_late)
    side = torch.cuda.Stream()
    tokens = torch.randint(3, 97, (LENGTH,)).tolist()
    full = LENGTH // BLOCK
    drawn, kept = set(), []
    for attempt in range(8):
        held = attempt % 2 == 0  # both kinds become graphs, which are then replayed
        ids = list(range(attempt * 34, attempt * 34 + 33))
        request = Request(
            f"r{attempt}", tokens, LENGTH, SamplingParams(temperature=0.0), block_ids=[ids], hold_blocks=held
        )
        rows = (ScheduledRow(request, 0, LENGTH, sample=True),)
        pending = runner.launch(SchedulerOutput(attempt + 1, rows))
        told = [moment.num_layers for moment in pending.layers]
        assert told == (list(marked_layers(pool.group.shape[0])) if held else [])
        early = []
        for moment in pending.layers:
            moment.wait()
            with torch.cuda.stream(side):
                early.append(pool.blocks[ids[0] : ids[full], : moment.num_layers].clone())
            side.synchronize()
        drawn.add(pending.wait().sampled[f"r{attempt}"])
        torch.cuda.synchronize()
        kept.append(pool.blocks[ids[0] : ids[full]].clone())
        for count, blocks in zip(told, early, strict=True):
            assert not blocks.isnan().any()
            assert torch.equal(blocks, kept[-1][:, :count])
        assert not pool.blocks[ids[-1] + 1 :].isfinite().any()
    assert len(drawn) == 1
    assert all(torch.equal(kept[0], other) for other in kept)
