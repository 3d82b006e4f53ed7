"""rms_norm, layer_norm, gated_activation, embedding: rows against float64."""

import pytest
import torch
import torch.nn.functional as functional

from engine.backends.base import Activation
from engine.backends.cuda import errors
from engine.backends.cuda.embedding import embedding
from engine.backends.cuda.gated_activation import gated_activation
from engine.backends.cuda.norms import layer_norm, rms_norm, row_shape

DTYPES = [torch.bfloat16, torch.float16]
SMALL = pytest.param(3, 576, marks=pytest.mark.sanitize)


def check(out: torch.Tensor, expected: torch.Tensor) -> None:
    assert not out.isnan().any()
    error = (out.double() - expected).norm() / expected.norm()
    assert error < (4e-3 if out.dtype == torch.bfloat16 else 5e-4), f"relative error {error:.2e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), SMALL, (33, 1000), (7, 4096), (5, 8200), (2, 32768)])
def test_norms(tokens: int, width: int, with_residual: bool, dtype: torch.dtype) -> None:
    x = torch.randn(tokens, width, device="cuda", dtype=dtype) + 0.5
    weight, bias = (torch.randn(width, device="cuda", dtype=dtype) for _ in range(2))
    for centred in (False, True):
        residual = torch.randn_like(x) if with_residual else None
        value = x.double()
        if residual is not None:
            summed = (x.float() + residual.float()).to(dtype)
            value = summed.double()
        if centred:
            out = layer_norm(x, weight, bias, 1e-5, residual)
            expected = functional.layer_norm(value, (width,), weight.double(), bias.double(), 1e-5)
        else:
            out = rms_norm(x, weight, 1e-5, residual)
            expected = value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
        check(out, expected)
        if residual is not None:
            assert torch.equal(residual, summed)


def test_layer_norm_without_bias() -> None:
    x, weight = torch.randn(4, 768, device="cuda").half(), torch.randn(768, device="cuda").half()
    expected = functional.layer_norm(x.double(), (768,), weight.double(), None, 1e-5)
    check(layer_norm(x, weight, None, 1e-5), expected)


def test_row_shape_covers_every_width() -> None:
    for width in range(8, 32769, 8):
        threads, vecs = row_shape(width)
        assert vecs <= 4
        assert (threads * vecs - threads) * 8 < width <= threads * vecs * 8
    with pytest.raises(errors.UnsupportedShapeError, match="12"):
        row_shape(12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), SMALL, (3, 4104), (17, 14336)])
def test_gated_activation(tokens: int, width: int, activation: Activation, dtype: torch.dtype) -> None:
    gate_up = torch.randn(tokens, 2 * width, device="cuda", dtype=dtype) * 4
    gate, up = gate_up.double().chunk(2, dim=-1)
    expected = {
        Activation.SILU: functional.silu,
        Activation.GELU: functional.gelu,
        Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    }[activation](gate) * up
    check(gated_activation(gate_up, activation), expected)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: torch.dtype) -> None:
    table = torch.randn(1000, 584, device="cuda", dtype=dtype)
    ids = torch.randint(0, 1000, (77,), device="cuda", dtype=torch.int32)
    assert torch.equal(embedding(ids, table), table[ids.long()])
    ids[3], ids[4] = -1, 1000
    out = embedding(ids, table)
    assert not out[3:5].any()
    assert torch.equal(out[5:], table[ids[5:].long()])
