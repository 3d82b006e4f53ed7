"""x [M, K] times weight [N, K] by the algorithm that was chosen for M, on torch's current stream.

A row's bits do not depend on M (product_choice.py).

A shape is measured once a machine, in some tenths of a second, when it is first multiplied: while an engine
warms up, never while a graph is captured. From then on its choices come from a file.
"""

from __future__ import annotations

import functools
import logging
import time

import torch

from engine.backends.cuda import cublaslt, driver, loader, product_file
from engine.backends.cuda.cublaslt import Algorithm, Product, ProductShape
from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.product_choice import Choices, buckets, choose
from engine.backends.cuda.product_trial import DeviceTrial

_log = logging.getLogger(__name__)

WORKSPACE_BYTES = 4096  # for counters of tiles: what is chosen may want 4 bytes for other numbers of rows
_ALIGNMENT = 16


class Multiplier:
    """Multiplies by one weight, and adds its bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype) -> None:
        """Measures the shape if nobody has: not while capturing.

        Args:
            weight: [N, K], contiguous, on torch's current device.
            bias: [N], in the weight's dtype and out_dtype.
        Raises:
            UnsupportedShapeError: cuBLASLt cannot multiply by it.
        """
        out_features, in_features = weight.shape
        shape = ProductShape(out_features, in_features, weight.dtype, out_dtype, bias is not None)
        self._weight = weight.data_ptr()
        bias_address = 0 if bias is None else bias.data_ptr()
        self._product = cublaslt.product(shape, bias_address, weight.device.index or 0)
        self._algorithms = _algorithms(shape, weight.device)

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """x [M, K], contiguous. Modifies out [M, N], contiguous."""
        rows, address = x.shape[0], x.data_ptr()
        if not rows:
            return
        assert address % _ALIGNMENT == 0, "rows of a product begin at a multiple of 16 bytes"
        algorithm = self._algorithms.for_rows(self._product, rows)
        stream = driver.current_stream()
        workspace = _workspace(x.device, stream).data_ptr() if algorithm.workspace_bytes else 0
        self._product.launch(algorithm, rows, address, self._weight, out.data_ptr(), workspace, stream)


class Algorithms:
    """Those of one shape, by the number of rows; each number is looked up once.

    Attributes:
        choices: what they come from.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self._known: dict[int, Algorithm] = {}

    def for_rows(self, product: Product, rows: int) -> Algorithm:
        """The algorithm with the workspace that it needs for so many rows.

        Raises:
            UnsupportedShapeError: the one chosen cannot do them.
        """
        known = self._known.get(rows)
        if known is None:
            known = product.checked(self.choices.for_rows(rows), rows)
            if known is None or known.workspace_bytes > WORKSPACE_BYTES:
                raise UnsupportedShapeError(f"{product.shape}: what was chosen cannot multiply {rows} rows")
            self._known[rows] = known
        return known


@functools.cache
def _algorithms(shape: ProductShape, device: torch.device) -> Algorithms:
    facts = loader.facts()
    depends_on = (facts.name, facts.num_sms, cublaslt.library().version, shape)
    return Algorithms(product_file.kept(depends_on, lambda: _measured(shape, device)))


def _measured(shape: ProductShape, device: torch.device) -> Choices:
    start = time.perf_counter()
    rows_of = buckets(shape.out_features, shape.out_dtype.itemsize)
    trial = DeviceTrial(shape, device, rows_of[-1], WORKSPACE_BYTES, loader.facts().l2_bytes)
    choices = choose(trial.product, trial, rows_of)
    del trial
    torch.cuda.empty_cache()
    if choices is None:
        raise UnsupportedShapeError(f"{shape}: cuBLASLt has no algorithm for it")
    _log.info("%s: measured in %.2f s", shape, time.perf_counter() - start)
    return choices


@functools.cache
def _workspace(device: torch.device, stream: int) -> torch.Tensor:
    # One a stream: two products at once must not share it. Graphs hold its address, so it stays for good.
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
