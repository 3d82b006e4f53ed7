"""A hint to the cache, from inside a kernel."""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def prefetch(typing_context: Any, matrix: Any, row: Any, column: Any) -> Any:
    """Ask for the cache line that holds matrix[row, column]; reads nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix_type = signature.args[0]
        array = context.make_array(matrix_type)(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(
            context, builder, matrix_type, array, list(arguments[1:]), wraparound=False
        )
        address = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        # For reading (0), into all levels of the cache (3), data (1).
        builder.call(function, [address, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(matrix, row, column), generate
