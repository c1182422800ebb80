"""Atomic operations on NumPy arrays and a clock, for compiled CPU code.

Numba has none of its own outside CUDA. Importing this module imports Numba, so kernels that use it
are imported when they are first run.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

MONOTONIC = 1
"""CLOCK_MONOTONIC of Linux, the clock of Python's `time.perf_counter_ns` there."""


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _read_modify_write(operation: str) -> Any:
    def typed(context: Any, array: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.atomic_rmw(operation, _pointer(context, builder, signature.args[0], *args[:2]), args[2], "seq_cst")

        return array.dtype(array, types.intp, array.dtype), codegen

    return typed


@intrinsic
def fetch_add(context, array, index, value):
    """array[index] += value; returns what stood there. All that was written before it is visible to
    whoever reads the sum with `acquire`."""
    return _read_modify_write("add")(context, array, index, value)


@intrinsic
def fetch_max(context, array, index, value):
    """array[index] = max(array[index], value); returns what stood there."""
    return _read_modify_write("max")(context, array, index, value)


@intrinsic
def acquire(context, array, index):
    """array[index]; nothing that follows is read before it."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], *args)
        kind = context.get_data_type(signature.return_type)
        return builder.load_atomic(pointer, "acquire", context.get_abi_sizeof(kind), typ=kind)

    return array.dtype(array, types.intp), codegen


@intrinsic
def clock_ns(context):
    """Nanoseconds of the monotonic clock."""

    def codegen(context, builder, signature, args):
        word, number = ir.IntType(64), ir.IntType(32)
        spec = cgutils.alloca_once(builder, ir.ArrayType(word, 2))
        declared = ir.FunctionType(number, [number, spec.type])
        call = cgutils.get_or_insert_function(builder.module, declared, "clock_gettime")
        builder.call(call, [number(MONOTONIC), spec])
        time = builder.load(spec)
        return builder.add(builder.mul(builder.extract_value(time, 0), word(10**9)), builder.extract_value(time, 1))

    return types.int64(), codegen


@intrinsic
def give_way(context):
    """Let another thread of this core go first: a waiting loop must not keep it from what it waits for."""

    def codegen(context, builder, signature, args):
        call = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "sched_yield")
        builder.call(call, [])
        return context.get_dummy_value()

    return types.void(), codegen
