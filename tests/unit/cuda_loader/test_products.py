"""Products by chosen algorithms, from the choice to the result, with a library over host memory."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from bench.kernels.host import no_device
from engine.backends.cuda import cublaslt, product_file, products
from engine.backends.cuda.linear import CudaLinear
from engine.backends.cuda.product_choice import Choice, Choices
from engine.backends.cuda.product_trial import DeviceTrial, bits, operands
from tests.support.fake_cublaslt import FakeAlgorithm, FakeCublasLt

K, N = 96, 40
BUCKETS = (1, 8, 64, 256, 320)
BY_16, BY_32 = FakeAlgorithm(16), FakeAlgorithm(32)
SPLIT = FakeAlgorithm(64, split_k=2, workspace_bytes=512)
DYNAMIC = FakeAlgorithm(16, workspace_bytes=4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "baton" / "products"
    forget()


def forget() -> None:
    """As in a new process."""
    cublaslt.product.cache_clear()
    products._algorithms.cache_clear()


@contextmanager
def device(fake: FakeCublasLt) -> Iterator[list[int]]:
    """A device with that library, on which algorithms that add more at a time are faster; rows timed."""
    timed: list[int] = []

    def microseconds(trial: DeviceTrial, rows: int, algorithms: list[cublaslt.Algorithm]) -> list[float]:
        timed.append(rows)
        return [
            1000.0 / trial.product.config(one).tile - 10 * bool(one.workspace_bytes) for one in algorithms
        ]

    forget()
    with (
        no_device(),
        mock.patch.object(cublaslt, "library", return_value=fake.library),
        mock.patch.object(products, "buckets", return_value=BUCKETS),
        mock.patch.object(DeviceTrial, "microseconds", microseconds),
    ):
        yield timed


def create(dtype: torch.dtype = torch.bfloat16, biased: bool = False) -> CudaLinear:
    return CudaLinear(torch.randn(N, K).to(dtype), torch.randn(N).to(dtype) if biased else None, few_rows=0)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_forward_multiplies(biased: bool, dtype: torch.dtype) -> None:
    with device(FakeCublasLt(lambda rows: [BY_16, BY_32])):
        linear = create(dtype, biased)
        for rows in (0, 1, 37, 300, 400):
            x = torch.randn(rows, K).to(dtype)
            wanted = x.float() @ linear.weight.float().t()
            if linear.bias is not None:
                wanted += linear.bias.float()
            torch.testing.assert_close(linear.forward(x).float(), wanted, rtol=2e-2, atol=2e-2)
            if not biased:
                out = torch.full((rows, N), torch.nan)
                assert linear.forward_float32(x, out) is out
                torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


def test_the_fastest_is_launched_with_its_workspace() -> None:
    fake = FakeCublasLt(lambda rows: [BY_16, DYNAMIC] if rows <= 64 else [BY_16])
    with device(fake):
        linear = create()
        linear.forward(torch.randn(3, K).bfloat16())
        linear.forward(torch.randn(65, K).bfloat16())
    assert fake.launched[-2:] == [(DYNAMIC, 3, 4), (BY_16, 65, 0)]


def test_a_row_has_the_same_bits_among_any_number() -> None:
    """What the library proposes first, and what is fastest, adds up in another order for some rows."""

    def proposals(rows: int) -> list[FakeAlgorithm]:
        return [SPLIT, BY_16, BY_32] if rows == 256 else [BY_32, SPLIT, BY_16] if rows > 8 else [BY_32]

    fake = FakeCublasLt(proposals)
    fake.proposes_splits = True
    with device(fake):
        linear = create()
        x, weight, _ = operands(300, N, K, torch.bfloat16, torch.Generator().manual_seed(3), cancelling=True)
        linear.weight.copy_(weight)
        among_many, logits = linear.forward(x), linear.forward_float32(x, torch.empty(300, N))
        assert among_many.any()
        for rows in (1, 2, 8, 9, 64, 256, 257):
            assert torch.equal(bits(linear.forward(x[:rows])), bits(among_many[:rows]))
            assert torch.equal(
                bits(linear.forward_float32(x[:rows], torch.empty(rows, N))), bits(logits[:rows])
            )


def test_the_same_shape_is_measured_once_a_machine(cache: Path) -> None:
    fake = FakeCublasLt(lambda rows: [BY_16, BY_32])
    x = torch.randn(5, K).bfloat16()
    with device(fake) as timed:
        create().forward(x)
        measured = len(timed)
        assert measured > 0
        create().forward(x)
        assert len(timed) == measured, "another weight"
    with device(fake) as timed:
        create().forward(x)
        assert not timed, "another process"
        create(torch.float16).forward(x.half())
        assert timed, "another dtype"
    with device(FakeCublasLt(lambda rows: [BY_16], version=130200)) as timed:
        create().forward(x)
        assert timed, "another library"
    assert len(list(cache.glob("*.json"))) == 3


def test_a_torn_file_is_made_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake, x = FakeCublasLt(lambda rows: [BY_16]), torch.randn(5, K).bfloat16()
    with device(fake):
        create().forward(x)
    (path,) = cache.glob("*.json")
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with device(fake) as timed, caplog.at_level(logging.WARNING):
        create().forward(x)
        assert timed
    assert "made again" in caplog.text
    assert path.read_text() == whole


def test_without_a_cache_each_start_measures(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (cache.parent.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent / "file"))
    with device(FakeCublasLt(lambda rows: [BY_16])) as timed, caplog.at_level(logging.WARNING):
        create().forward(torch.randn(5, K).bfloat16())
        assert timed
    assert "cannot be kept" in caplog.text


def _keep(pipe: object, name: str) -> None:
    import time

    def measure() -> Choices:
        time.sleep(0.2)
        return Choices((Choice(1, cublaslt.Algorithm(name.encode().ljust(64), 0), 1.0),))

    pipe.send(product_file.kept(("shape",), measure).to_json())  # type: ignore[attr-defined]


def test_processes_that_start_together_take_the_same() -> None:
    context = multiprocessing.get_context("fork")
    pipes, others = zip(*(context.Pipe(duplex=False) for _ in range(4)), strict=True)
    started = [context.Process(target=_keep, args=(pipe, f"{at}")) for at, pipe in enumerate(others)]
    for process in started:
        process.start()
    taken = [pipe.recv() for pipe in pipes]
    for process in started:
        process.join()
    assert len(set(taken)) == 1


def sums(x: torch.Tensor, weight: torch.Tensor, piece: int) -> torch.Tensor:
    """x weight^T, added up in float32 in pieces of k, one after the other, and rounded to bf16."""
    total = torch.zeros(x.shape[0], weight.shape[0])
    for start in range(0, x.shape[1], piece):
        part = x[:, start : start + piece].double() @ weight[:, start : start + piece].double().t()
        total += part.float()
    return total.bfloat16()


def differing(cancelling: bool) -> float:
    """Share of sums that two orders of additions tell apart."""
    generator = torch.Generator().manual_seed(3)
    x, weight, _ = operands(16, 64, 768, torch.bfloat16, generator, cancelling=cancelling)
    return float((sums(x, weight, 16) != sums(x, weight, 64)).float().mean())


def test_operands_tell_orders_of_additions_apart() -> None:
    assert differing(cancelling=True) > 0.8
    assert differing(cancelling=False) < 0.05, "else plain random numbers would do"


def test_cancelling_sums_are_rounding_alone() -> None:
    for in_features in (112, 113):
        generator = torch.Generator().manual_seed(4)
        x, weight, bias = operands(8, 8, in_features, torch.bfloat16, generator, cancelling=True)
        assert float((x.double() @ weight.double().t()).abs().max()) < 1e-12
        assert not bias.any()
        assert x.any()
