"""Every wrapper hands its kernel arguments of the kinds and widths that the .cu file declares."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench.kernels.host import cases, no_device
from engine.backends.cuda import loader, sampling
from engine.backends.cuda.attention_decode import _PARAMS
from engine.backends.cuda.block_copy import block_copy
from engine.backends.cuda.launches import Argument, format_of
from engine.backends.cuda.layer_marks import LayerMarks
from engine.backends.cuda.norms import layer_norm
from engine.backends.cuda.source import SOURCE_DIR
from engine.backends.cuda.step_inputs import DeviceState, StepBuffers

_ENTRY = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^{]*?\)\s+)?(\w+)\(([^)]*)\)')
_WIDTHS = {
    "i32": "i", "int": "i", "u32": "I", "i64": "q", "u64": "Q", "float": "f", "TensorMap": "128s",
    "Params": f"{_PARAMS.itemsize}s",
}  # fmt: skip
Call = tuple[str, tuple[Argument, ...]]


def declared() -> dict[str, list[str]]:
    """Formats of each kernel's parameters, from the sources."""
    found = {}
    for path in sorted(SOURCE_DIR.glob("*.cu*")):
        text = re.sub(r"//[^\n]*", "", path.read_text())
        assert len(_ENTRY.findall(text)) == text.count('extern "C"'), (
            f"{path.name}: a kernel that is not seen"
        )
        for name, parameters in _ENTRY.findall(text):
            found[name] = ["Q" if "*" in one else _WIDTHS[type_of(one)] for one in parameters.split(",")]
    return found


def type_of(parameter: str) -> str:
    words = [word.rstrip("&") for word in parameter.split() if word not in ("const", "__grid_constant__")]
    return words[0]


@pytest.fixture(params=["sm_90a", "sm_80"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """What launches are given on a device of each kind."""
    seen: list[Call] = []

    def record(kernel: loader.Kernel, grid: object, block: object, *args: Argument, **_: object) -> None:
        seen.append((kernel._raw.name, args))  # type: ignore[attr-defined]

    monkeypatch.setattr(loader.Kernel, "__call__", record)
    with no_device(request.param):
        yield seen


def launch_everything() -> None:
    for call in cases().values():
        call()
    x, weight = torch.zeros(4, 64, dtype=torch.bfloat16), torch.zeros(64, dtype=torch.bfloat16)
    layer_norm(x, weight, None, 1e-5)
    ints = torch.zeros(4, dtype=torch.int32)
    pool = torch.zeros(4, 1, 2, 2, 16, 64, dtype=torch.bfloat16)
    block_copy(pool, pool, ints[:2], ints[2:])
    logits = torch.zeros(2, 100)
    rows = sampling.SamplingRows(
        [sampling.SamplingRow(logit_bias={3: 1.0}), sampling.SamplingRow()], torch.device("cpu")
    )
    sampling.sample(logits, rows)
    sampling.logprobs(logits, ints[:2], ints[2:])
    state = DeviceState(4, 8, 16, torch.device("cpu"))
    state.edit(ints, ints)
    state.inputs(
        torch.zeros(32, dtype=torch.uint8), 1, ints, StepBuffers.create(8, 4, 8, torch.device("cpu"))
    )
    state.outputs(ints, ints)
    LayerMarks(1).stored(0, torch.zeros(32, dtype=torch.uint8))


def test_arguments_are_as_wide_as_parameters(calls: list[Call]) -> None:
    launch_everything()
    wanted = declared()
    for name, args in calls:
        assert [format_of(arg) for arg in args] == wanted[name], name
    other = "attention_prefill" if "attention_prefill_sm90" in dict(calls) else "attention_prefill_sm90"
    assert dict(calls).keys() == wanted.keys() - {other}


def test_the_parameters_of_attention_decode_are_laid_out_as_in_c() -> None:
    """NumPy does not pad; C would, if a field were not aligned to its size."""
    text = (SOURCE_DIR / "attention_decode_shape.cuh").read_text()
    body = re.sub(r"//[^\n]*", "", text[text.index("struct Params {") :].partition("};")[0].partition("{")[2])
    names: list[tuple[str, int]] = []
    for line in filter(None, (part.strip() for part in body.split(";"))):
        kind, _, rest = line.rpartition(" ") if "*" in line else line.partition(" ")
        size = 8 if "*" in line or kind == "i64" else 4
        names += [(name.strip("* "), size) for name in rest.split(",")]
    end = 0
    fields = _PARAMS.fields
    assert fields is not None
    for (name, size), (ours, (dtype, offset, *_)) in zip(names, fields.items(), strict=True):
        assert (name, size) == (ours, dtype.itemsize)
        assert offset == end
        assert offset % size == 0
        end += size
    assert end == _PARAMS.itemsize
    assert end % 8 == 0
    assert _PARAMS.fields["scale_log2"][0] == np.float32
