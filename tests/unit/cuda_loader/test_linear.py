"""Which kernel takes products of few rows, and how it is laid out."""

from __future__ import annotations

import pytest

from bench.kernels.host import no_device
from engine.backends.cuda.linear_rows import MAX_ROWS, layout_of, rows_that_pay
from engine.backends.cuda.target import TYPICAL_DEVICES


def test_few_rows_are_those_that_fit_beside_their_rings() -> None:
    with no_device():
        assert rows_that_pay(1024, 2048) == MAX_ROWS
        assert rows_that_pay(28672, 4096) == 8
        assert rows_that_pay(4096, 14336) == 5
        assert rows_that_pay(4096, 200_000) == 0


@pytest.mark.parametrize("arch", TYPICAL_DEVICES)
@pytest.mark.parametrize(
    "shape", [(6144, 4096), (4096, 14336), (1024, 2048), (97, 256), (40, 8), (151936, 1024)]
)
def test_a_weight_is_shared_out_to_blocks_that_run_at_once(arch: str, shape: tuple[int, int]) -> None:
    device, (out_features, in_features) = TYPICAL_DEVICES[arch], shape
    for rows in range(1, MAX_ROWS + 1):
        layout = layout_of(rows, out_features, in_features, device)
        if layout is None:
            assert rows * in_features * 2 > device.shared_bytes_per_block // 3
            continue
        assert (layout.blocks - 1) * layout.share < out_features <= layout.blocks * layout.share
        assert layout.shared_bytes <= device.shared_bytes_per_block
        at_once = device.shared_bytes_per_sm // (layout.shared_bytes + 1024)
        assert layout.blocks <= at_once * device.num_sms
        assert layout.stages >= 1
