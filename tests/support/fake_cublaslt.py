"""cuBLASLt over host memory, behind the C signatures of cublasLt.h and their calling convention.

Its algorithms differ in how many terms of a sum they add at a time, as a GPU's do.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import struct
from collections.abc import Callable
from ctypes import POINTER, c_char, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass, field

import torch

from engine.backends.cuda.cublaslt import PROTOTYPES, Library

NOT_SUPPORTED = 15
_DTYPES = {0: torch.float32, 2: torch.float16, 14: torch.bfloat16}
_ALGORITHM = struct.Struct("=IIII48x")

# As cublasLt.h declares them; a handle is a pointer.
_SIGNATURES = {
    "cublasLtCreate": (POINTER(c_void_p),),
    "cublasLtMatmulDescCreate": (POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (c_void_p, c_int, POINTER(c_char), c_size_t),
    "cublasLtMatrixLayoutCreate": (POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatmulPreferenceCreate": (POINTER(c_void_p),),
    "cublasLtMatmulPreferenceSetAttribute": (c_void_p, c_int, POINTER(c_char), c_size_t),
    "cublasLtMatmulAlgoGetHeuristic": (
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_int, POINTER(c_char), POINTER(c_int)),
    ),
    "cublasLtMatmulAlgoCheck": (
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_char), POINTER(c_char)),
    ),
    "cublasLtMatmulAlgoConfigGetAttribute": (
        *(POINTER(c_char), c_int, POINTER(c_char), c_size_t, POINTER(c_size_t)),
    ),
    "cublasLtMatmul": (
        *(c_void_p, c_void_p, POINTER(c_float), c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_float)),
        *(c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_char), c_void_p, c_size_t, c_void_p),
    ),
}


def _method(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name.removeprefix("cublasLt")).lower()


@dataclass(frozen=True)
class FakeAlgorithm:
    """Adds `piece` terms at a time; `split_k` and `workspace_bytes` are what it says of itself."""

    piece: int
    split_k: int = 1
    workspace_bytes: int = 0
    most_rows: int = 1 << 20


@dataclass
class _Object:
    """Anything with a handle."""

    values: tuple[int, ...] = ()
    attributes: dict[int, bytes] = field(default_factory=dict)


class FakeCublasLt:
    """The library.

    Attributes:
        proposals: what its heuristics say for a number of rows.
        library: for the code under test.
        proposes_splits: its heuristics propose split sums though nobody wants them.
        launched: algorithm, rows and workspace bytes of each product.
    """

    def __init__(self, proposals: Callable[[int], list[FakeAlgorithm]], version: int = 130100) -> None:
        self.proposals = proposals
        self.proposes_splits = False
        self.launched: list[tuple[FakeAlgorithm, int, int]] = []
        self._objects: dict[int, _Object] = {}
        self._handles = itertools.count(16, 16)
        assert _SIGNATURES.keys() == PROTOTYPES.keys()
        functions = {}
        for name, types in _SIGNATURES.items():
            callback = ctypes.CFUNCTYPE(c_int, *types)(getattr(self, _method(name)))
            # The address again as a function, with the types that the code under test says it has.
            functions[name] = ctypes.CFUNCTYPE(c_int, *PROTOTYPES[name])(
                ctypes.cast(callback, c_void_p).value or 0
            )
            functions[name].keep = callback
        self.library = Library(functions, version)

    def _new(self, out: ctypes._Pointer[c_void_p], *values: int) -> int:
        handle = next(self._handles)
        self._objects[handle] = _Object(values)
        out[0] = handle
        return 0

    def _create(self, out: ctypes._Pointer[c_void_p]) -> int:
        return self._new(out)

    def _matmul_desc_create(self, out: ctypes._Pointer[c_void_p], compute: int, scale: int) -> int:
        assert (compute, scale) == (68, 0), "sums and factors are float32"
        return self._new(out)

    def _matrix_layout_create(
        self, out: ctypes._Pointer[c_void_p], dtype: int, rows: int, columns: int, stride: int
    ) -> int:
        assert stride == rows
        return self._new(out, dtype, rows, columns)

    def _matmul_preference_create(self, out: ctypes._Pointer[c_void_p]) -> int:
        return self._new(out)

    def _set(self, handle: int, attribute: int, data: ctypes._Pointer[c_char], size: int) -> int:
        self._objects[handle].attributes[attribute] = data[:size]
        return 0

    _matmul_desc_set_attribute = _set
    _matmul_preference_set_attribute = _set

    def _matmul_algo_get_heuristic(
        self,
        handle: int,
        operation: int,
        a: int,
        b: int,
        c: int,
        d: int,
        preference: int,
        count: int,
        results: ctypes._Pointer[c_char],
        found: ctypes._Pointer[c_int],
    ) -> int:
        wanted = self._objects[preference].attributes
        assert wanted[1] == bytes(8), "no workspace"
        assert wanted[3] == b"\0\0\0\0", "sums are not cut"
        assert all(wanted[alignment] == b"\x10\0\0\0" for alignment in (5, 6, 7, 8))
        assert c == d
        fitting = [
            one
            for one in self.proposals(self._objects[b].values[2])
            if one.split_k == 1 or self.proposes_splits
        ][:count]
        for index, one in enumerate(fitting):
            self._write(one, results, index * 96)
        found[0] = len(fitting)
        return 0 if fitting else NOT_SUPPORTED

    def _write(self, one: FakeAlgorithm, result: ctypes._Pointer[c_char], offset: int) -> None:
        data = _ALGORITHM.pack(one.piece, one.split_k, one.workspace_bytes, one.most_rows)
        for at, byte in enumerate(data + struct.pack("=Qif16x", one.workspace_bytes, 0, 1.0)):
            result[offset + at] = byte

    def _matmul_algo_check(
        self,
        handle: int,
        operation: int,
        a: int,
        b: int,
        c: int,
        d: int,
        data: ctypes._Pointer[c_char],
        result: ctypes._Pointer[c_char],
    ) -> int:
        one = FakeAlgorithm(*_ALGORITHM.unpack(data[:64]))
        if self._objects[b].values[2] > one.most_rows:
            return NOT_SUPPORTED
        self._write(one, result, 0)
        return 0

    def _matmul_algo_config_get_attribute(
        self,
        data: ctypes._Pointer[c_char],
        attribute: int,
        value: ctypes._Pointer[c_char],
        size: int,
        written: ctypes._Pointer[c_size_t],
    ) -> int:
        one = FakeAlgorithm(*_ALGORITHM.unpack(data[:64]))
        assert size == (4 if attribute < 7 else 2)
        number = {0: 66, 1: one.piece, 2: one.split_k}.get(attribute, 0)
        for at, byte in enumerate(number.to_bytes(size, "little")):
            value[at] = byte
        written[0] = size
        return 0

    def _matmul(
        self,
        handle: int,
        operation: int,
        alpha: ctypes._Pointer[c_float],
        a_data: int,
        a: int,
        b_data: int,
        b: int,
        beta: ctypes._Pointer[c_float],
        c_data: int,
        c: int,
        d_data: int,
        d: int,
        data: ctypes._Pointer[c_char],
        workspace: int | None,
        workspace_bytes: int,
        stream: int | None,
    ) -> int:
        one = FakeAlgorithm(*_ALGORITHM.unpack(data[:64]))
        attributes = self._objects[operation].attributes
        assert attributes[3] == b"\1\0\0\0", "the weight is transposed"
        assert (alpha[0], beta[0]) == (1.0, 0.0)
        assert workspace_bytes == one.workspace_bytes
        assert bool(workspace) or not workspace_bytes
        weight, x, out = self._matrix(a_data, a), self._matrix(b_data, b), self._matrix(d_data, d)
        total = torch.zeros(out.shape)
        for start in range(0, x.shape[1], one.piece):
            part = slice(start, start + one.piece)
            total += (x[:, part].double() @ weight[:, part].double().t()).float()
        if attributes.get(7) == b"\4\0\0\0":
            address = int.from_bytes(attributes[8], "little")
            total += _at(address, out.shape[1], out.dtype).float()
        out.copy_(total)
        self.launched.append((one, x.shape[0], workspace_bytes))
        return 0

    def _matrix(self, address: int, layout: int) -> torch.Tensor:
        dtype, height, width = self._objects[layout].values
        return _at(address, height * width, _DTYPES[dtype]).view(width, height)


def _at(address: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer((c_char * (count * dtype.itemsize)).from_address(address), dtype=dtype)
