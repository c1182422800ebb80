"""Eight consecutive elements at a time: 16-byte memory instructions for kernels that stream weights.

Numba has no vector load of arrays. `load8` and `stream8` take a C-contiguous array of any number of
dimensions and the number of its element at which to read, counted from the array's first one; that
element must lie on a 16-byte boundary of memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.element import from_bfloat16
from kernels.cuda.jit import device, primitive


def _flat(array: Any) -> np.ndarray:
    """A simulated array as a flat NumPy view."""
    inner = getattr(getattr(array, "_item", array), "_ary", array)
    return np.asarray(inner).reshape(-1)


@primitive
def load8(array, start):
    """Eight elements as a tuple of float32."""
    values = _flat(array)[int(start) : int(start) + 8]
    assert len(values) == 8, f"8 elements from {start} on are past the end of the array"
    return tuple(from_bfloat16(values) if values.dtype == np.uint16 else values.astype(np.float32))


@primitive
def stream8(array, start):
    """`load8` of memory that nothing writes while the kernel runs, each byte of which is read once:
    it goes round the L1 cache."""
    return load8(array, start)


def _words(builder: Any, pointer: Any, streamed: bool) -> list[Any]:
    """Four 32-bit words at a global pointer, one instruction."""
    from llvmlite import ir

    word = ir.IntType(32)
    if not streamed:
        vector = builder.load(builder.bitcast(pointer, ir.VectorType(word, 4).as_pointer()), align=16)
        return [builder.extract_element(vector, word(i)) for i in range(4)]
    result = ir.LiteralStructType([word] * 4)
    address = builder.ptrtoint(pointer, ir.IntType(64))
    asm = "ld.global.nc.L1::no_allocate.v4.u32 {$0, $1, $2, $3}, [$4];"
    call = ir.InlineAsm(ir.FunctionType(result, [ir.IntType(64)]), asm, "=r,=r,=r,=r,l", side_effect=False)
    four = builder.call(call, [address])
    return [builder.extract_value(four, i) for i in range(4)]


def _floats(builder: Any, dtype: Any, word: Any) -> list[Any]:
    """The elements in one 32-bit word, first the one at the lower address."""
    from llvmlite import ir
    from numba.cuda import types

    single, half, i32, i16 = ir.FloatType(), ir.HalfType(), ir.IntType(32), ir.IntType(16)
    if dtype == types.float32:
        return [builder.bitcast(word, single)]
    if dtype == types.uint16:
        return [builder.bitcast(builder.shl(word, i32(16)), single), builder.bitcast(builder.and_(word, i32(0xFFFF0000)), single)]
    halves = builder.trunc(word, i16), builder.trunc(builder.lshr(word, i32(16)), i16)
    return [builder.fpext(builder.bitcast(h, half), single) for h in halves]


def _load(streamed: bool) -> Any:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic
    from numba.cuda.np import arrayobj

    @intrinsic
    def load(context, array, start):
        def codegen(context, builder, signature, args):
            data = arrayobj.make_array(signature.args[0])(context, builder, args[0]).data
            element = builder.gep(data, [args[1]])
            words: list[Any] = []
            for part in range(8 * array.dtype.bitwidth // 128):
                at = builder.gep(element, [ir.IntType(64)(part * 128 // array.dtype.bitwidth)])
                words += _words(builder, at, streamed)
            floats = [f for word in words for f in _floats(builder, array.dtype, word)]
            return context.make_tuple(builder, signature.return_type, floats)

        return types.UniTuple(types.float32, 8)(array, types.int64), codegen

    return load


@load8.compiled
def _load8() -> Any:
    return _load(streamed=False)


@stream8.compiled
def _stream8() -> Any:
    return _load(streamed=True)


@device(inline="always")
def dot8(a, b):
    """Dot product of two tuples of eight."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3] + a[4] * b[4] + a[5] * b[5] + a[6] * b[6] + a[7] * b[7]


@primitive
def element(array, at):
    """Element number `at` of an array of any number of dimensions, as float32."""
    values = _flat(array)[int(at) : int(at) + 1]
    return (from_bfloat16(values) if values.dtype == np.uint16 else values.astype(np.float32))[0]


@element.compiled
def _element() -> Any:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic
    from numba.cuda.np import arrayobj

    @intrinsic
    def one(context, array, at):
        def codegen(context, builder, signature, args):
            data = arrayobj.make_array(signature.args[0])(context, builder, args[0]).data
            bits = ir.IntType(array.dtype.bitwidth)
            found = builder.load(builder.bitcast(builder.gep(data, [args[1]]), bits.as_pointer()))
            word = builder.zext(found, ir.IntType(32)) if array.dtype.bitwidth < 32 else found
            return _floats(builder, array.dtype, word)[0]

        return types.float32(array, types.int64), codegen

    return one
