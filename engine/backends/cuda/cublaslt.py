"""Products by cuBLASLt with an algorithm of our choice: x [M, K], weight [N, K] -> [M, N].

cuBLASLt thinks in columns: D [N, M] = weight^T x, D's columns being our rows. A Product holds the
descriptors of one weight shape; those that depend on M are made once for each M and kept. The library is
the one that torch has loaded, found among the process's mappings, so that both are of one version.

Numbers of enumerations and widths of attributes are those of cublasLt.h (CUDA 13), which says that a
library of the same major version keeps them.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.backends.cuda.errors import ProductError, ProductsMissingError

_SUCCESS = 0
_RESULT = struct.Struct("=64sQif16x")  # cublasLtMatmulHeuristicResult_t: algorithm, workspace, state, waves
_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}  # cudaDataType_t
_COMPUTE_FLOAT32 = 68  # CUBLAS_COMPUTE_32F
_ALIGNMENT = 16  # bytes, of every address given: what the tensor copy engine needs

# Attributes: number and width.
_DESC_TRANSPOSE_A = (3, "=i")
_DESC_EPILOGUE = (7, "=I")
_DESC_BIAS = (8, "=Q")
_PREFERENCE_WORKSPACE = (1, "=Q")
_PREFERENCE_REDUCTION = (3, "=I")
_PREFERENCE_ALIGNMENTS = ((5, "=I"), (6, "=I"), (7, "=I"), (8, "=I"))
_TRANSPOSED = 1  # CUBLAS_OP_T
_EPILOGUE_BIAS = 4
_NO_REDUCTION = 0
_CONFIG = ("=i", "=I", "=i", "=I", "=I", "=I", "=I", "=H", "=H")  # CUBLASLT_ALGO_CONFIG_*, from 0

_P, _I, _SIZE, _U64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint64
PROTOTYPES: dict[str, tuple[object, ...]] = {
    "cublasLtCreate": (_P,),
    "cublasLtMatmulDescCreate": (_P, _I, _I),
    "cublasLtMatmulDescSetAttribute": (_P, _I, _P, _SIZE),
    "cublasLtMatrixLayoutCreate": (_P, _I, _U64, _U64, ctypes.c_int64),
    "cublasLtMatmulPreferenceCreate": (_P,),
    "cublasLtMatmulPreferenceSetAttribute": (_P, _I, _P, _SIZE),
    "cublasLtMatmulAlgoGetHeuristic": (_P, _P, _P, _P, _P, _P, _P, _I, _P, _P),
    "cublasLtMatmulAlgoCheck": (_P, _P, _P, _P, _P, _P, _P, _P),
    "cublasLtMatmulAlgoConfigGetAttribute": (_P, _I, _P, _SIZE, _P),
    "cublasLtMatmul": (_P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _SIZE, _P),
}
Function = Callable[..., int]


@dataclass(frozen=True, slots=True)
class Config:
    """What the library tells of an algorithm; numbers are its own (cublasLtMatmulAlgoConfigAttributes_t)."""

    id: int
    tile: int
    split_k: int
    reduction: int
    swizzle: int
    option: int
    stages: int
    inner_shape: int
    cluster: int


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One way to compute a product.

    Attributes:
        data: as the library wants it back; means the same in every process with the same library and GPU.
        workspace_bytes: of device memory that it needs.
    """

    data: bytes
    workspace_bytes: int


class Library:
    """The functions, checked: each raises ProductError where cuBLASLt returns a status."""

    def __init__(self, functions: dict[str, Function], version: int) -> None:
        self.functions = functions
        self.version = version

    @classmethod
    def load(cls) -> Library:
        """The one of this process.

        Raises:
            ProductsMissingError: there is none, or it lacks a function.
        """
        try:
            library = ctypes.CDLL(_path())
            for name, types in PROTOTYPES.items():
                getattr(library, name).argtypes = types
                getattr(library, name).restype = ctypes.c_int
            library.cublasLtGetVersion.restype = ctypes.c_size_t
            functions = {name: getattr(library, name) for name in PROTOTYPES}
            return cls(functions, int(library.cublasLtGetVersion()))
        except (OSError, AttributeError) as error:
            raise ProductsMissingError(str(error)) from error

    def call(self, name: str, *args: object) -> None:
        """Call one of PROTOTYPES.

        Raises:
            ProductError: with its status.
        """
        status = self.functions[name](*args)
        if status != _SUCCESS:
            raise ProductError(name, status)

    def create(self, name: str, *args: object) -> int:
        """Call a Create function; the handle that it gives lives as long as the process."""
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle), *args)
        assert handle.value is not None
        return handle.value

    def set(self, name: str, target: int, attribute: tuple[int, str], value: int) -> None:
        """Call a SetAttribute function."""
        number, width = attribute
        packed = struct.pack(width, value)
        self.call(name, target, number, packed, len(packed))


def _path() -> str:
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.partition("/")[2]
        if "libcublasLt.so" in path:
            return f"/{path}"
    return f"libcublasLt.so.{(torch.version.cuda or '13').partition('.')[0]}"


@functools.cache
def library() -> Library:
    """The process's own."""
    return Library.load()


@dataclass(frozen=True, slots=True)
class ProductShape:
    """All but the number of rows.

    Attributes:
        out_features, in_features: N, K.
        dtype, out_dtype: of x, weight and bias; of the result.
        has_bias: N numbers are added to each row.
    """

    out_features: int
    in_features: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    has_bias: bool


class Product:
    """Products with weights of one shape, and a bias at one address.

    Attributes:
        shape: as given.
    """

    def __init__(self, library: Library, handle: int, shape: ProductShape, bias: int = 0) -> None:
        """`bias`: an address; 0 if the shape has none."""
        assert bool(bias) is shape.has_bias
        self.shape = shape
        self._library, self._handle = library, handle
        self._matmul = library.functions["cublasLtMatmul"]
        self._one = ctypes.c_float(1.0)
        self._zero = ctypes.c_float(0.0)
        self._alpha, self._beta = ctypes.addressof(self._one), ctypes.addressof(self._zero)
        create = library.create
        self._operation = create("cublasLtMatmulDescCreate", _COMPUTE_FLOAT32, _TYPES[torch.float32])
        set_operation = functools.partial(library.set, "cublasLtMatmulDescSetAttribute", self._operation)
        set_operation(_DESC_TRANSPOSE_A, _TRANSPOSED)
        if bias:
            set_operation(_DESC_EPILOGUE, _EPILOGUE_BIAS)
            set_operation(_DESC_BIAS, bias)
        self._weight = self._layout(shape.dtype, shape.in_features, shape.out_features)
        self._layouts: dict[int, tuple[int, int]] = {}

    def algorithms(self, rows: int, limit: int) -> list[Algorithm]:
        """What the library's heuristics propose for M = rows, at most `limit`, best first; may be empty.

        None cuts a sum over k into parts that are added up later, and none needs a workspace: given one, the
        library takes its best few first and then drops those that cut, which may be all of them.
        """
        library = self._library
        preference = _preference(library)
        x, out = self._layouts_of(rows)
        results = ctypes.create_string_buffer(limit * _RESULT.size)
        found = ctypes.c_int()
        try:
            library.call(
                "cublasLtMatmulAlgoGetHeuristic",
                self._handle,
                self._operation,
                self._weight,
                x,
                out,
                out,
                preference,
                limit,
                results,
                ctypes.byref(found),
            )
        except ProductError:  # its way of saying that there is none
            return []
        entries = [_RESULT.unpack_from(results, index * _RESULT.size) for index in range(found.value)]
        return [Algorithm(data, size) for data, size, state, _ in entries if state == _SUCCESS]

    def checked(self, algorithm: Algorithm, rows: int) -> Algorithm | None:
        """The algorithm with the workspace that it needs for M = rows; None: it cannot compute that."""
        x, out = self._layouts_of(rows)
        result = ctypes.create_string_buffer(_RESULT.size)
        check = self._library.functions["cublasLtMatmulAlgoCheck"]
        status = check(self._handle, self._operation, self._weight, x, out, out, algorithm.data, result)
        if status != _SUCCESS:
            return None
        _, workspace_bytes, state, _ = _RESULT.unpack(result.raw)
        return Algorithm(algorithm.data, workspace_bytes) if state == _SUCCESS else None

    def config(self, algorithm: Algorithm) -> Config:
        """What an algorithm is."""
        values = []
        for number, width in enumerate(_CONFIG):
            held = ctypes.create_string_buffer(struct.calcsize(width))
            written = ctypes.c_size_t()
            self._library.call(
                "cublasLtMatmulAlgoConfigGetAttribute",
                algorithm.data,
                number,
                held,
                len(held),
                ctypes.byref(written),
            )
            values.append(struct.unpack(width, held.raw)[0])
        return Config(*values)

    def launch(
        self, algorithm: Algorithm, rows: int, x: int, weight: int, out: int, workspace: int, stream: int
    ) -> None:
        """Enqueue one product on a stream (CUstream), which may be capturing.

        Args:
            x, weight, out, workspace: addresses, multiples of 16; the last may be 0 if none is needed.
        Raises:
            ProductError: the library refuses.
        """
        layouts = self._layouts.get(rows) or self._layouts_of(rows)
        status = self._matmul(
            self._handle,
            self._operation,
            self._alpha,
            weight,
            self._weight,
            x,
            layouts[0],
            self._beta,
            out,
            layouts[1],
            out,
            layouts[1],
            algorithm.data,
            workspace,
            algorithm.workspace_bytes,
            stream,
        )
        if status != _SUCCESS:
            raise ProductError("cublasLtMatmul", status)

    def _layouts_of(self, rows: int) -> tuple[int, int]:
        found = self._layouts.get(rows)
        if found is None:
            found = self._layouts[rows] = (
                self._layout(self.shape.dtype, self.shape.in_features, rows),
                self._layout(self.shape.out_dtype, self.shape.out_features, rows),
            )
        return found

    def _layout(self, dtype: torch.dtype, height: int, width: int) -> int:
        return _layout(self._library, _TYPES[dtype], height, width)


@functools.cache
def product(shape: ProductShape, bias: int, device: int) -> Product:
    """One for all weights of a shape, or for all whose bias lies there. `device` is torch's current one."""
    return Product(library(), _handle(device), shape, bias)


@functools.cache
def _handle(_: int) -> int:
    return library().create("cublasLtCreate")


@functools.cache
def _layout(library: Library, type_code: int, height: int, width: int) -> int:
    """Of a matrix whose columns lie one after the other. Weights of one width share those of x."""
    return library.create("cublasLtMatrixLayoutCreate", type_code, height, width, height)


@functools.cache
def _preference(library: Library) -> int:
    name = "cublasLtMatmulPreferenceSetAttribute"
    made = library.create("cublasLtMatmulPreferenceCreate")
    library.set(name, made, _PREFERENCE_WORKSPACE, 0)
    library.set(name, made, _PREFERENCE_REDUCTION, _NO_REDUCTION)
    for attribute in _PREFERENCE_ALIGNMENTS:
        library.set(name, made, attribute, _ALIGNMENT)
    return made
