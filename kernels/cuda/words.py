"""Weights in flight: many 16-byte loads issued together, used later.

A *batch* is some rows of a weight matrix times some units of 32 lanes x 16 bytes along each row; 4 x 3 is
12 loads a lane, 48 registers, 6 KiB a warp. `fetch` issues them, and they are volatile: the compiler
leaves them where they stand, so what is fetched before a barrier flies while the block waits there.
`dots` multiplies a batch with a row of activations. What lies past the end of a row loads as zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.cuda.element import from_bfloat16
from kernels.cuda.jit import Primitive, primitive
from kernels.cuda.wide import _flat, _floats

BYTES = 16
LANES = 32


class Batch(NamedTuple):
    """fetch(weights, start, stride, first, k) -> words; rows begin at element start + r stride of the flat
    weights and have k elements, of which the batch takes those from `first` on.

    dots(weights, words, x, rows_of_x, first, k) -> flat tuple: for each row of the batch its product with
    each of `rows_of_x`, a tuple of places where rows begin in the flat x (same element type); the
    lane's part of it, float32.

    elements(weights): elements along a row that a batch covers, so `first` advances by that much.
    k and all starts are multiples of 16 bytes.
    """

    fetch: Primitive
    dots: Primitive
    elements: Primitive
    rows: int


def _lane() -> int:
    import threading

    return threading.current_thread().thread_id % LANES  # type: ignore[attr-defined]


def _at(unit: int, each: int) -> int:
    """Place of the calling lane's unit within a batch's stretch of a row."""
    return (unit * LANES + _lane()) * each


def batch(rows: int, units: int) -> Batch:
    @primitive
    def fetch(weights, start, stride, first, k):
        flat, words = _flat(weights), []
        each = BYTES // flat.itemsize
        for r in range(rows):
            for u in range(units):
                i = first + _at(u, each)
                found = flat[start + r * stride + i :][:each] if i < k else np.zeros(each, flat.dtype)
                assert len(found) == each, f"16 bytes at {start + r * stride + i} are past the end of the array"
                words.append(from_bfloat16(found) if found.dtype == np.uint16 else found.astype(np.float32))
        return words

    @primitive
    def dots(weights, words, x, rows_of_x, first, k):
        flat = _flat(x)
        each = BYTES // flat.itemsize
        sums = np.zeros((rows, len(rows_of_x)), np.float32)
        for n, row in enumerate(rows_of_x):
            for u in range(units):
                at = row + min(first + _at(u, each), k - each)
                values = flat[at : at + each]
                values = from_bfloat16(values) if values.dtype == np.uint16 else values.astype(np.float32)
                for r in range(rows):
                    sums[r, n] += np.dot(words[r * units + u], values)
        return tuple(sums.ravel())

    @primitive
    def elements(weights):
        return units * LANES * (BYTES // _flat(weights).itemsize)

    fetch.compiled(lambda: _fetch(rows, units))
    dots.compiled(lambda: _dots(rows, units))
    elements.compiled(lambda: _elements(units))
    return Batch(fetch, dots, elements, rows)


def _elements(units: int) -> Any:
    from numba.cuda.extending import overload

    def covered(weights):
        raise NotImplementedError

    @overload(covered, inline="always")
    def typed(weights):
        count = np.int32(units * LANES * BYTES * 8 // weights.dtype.bitwidth)
        return lambda weights: count

    return covered


_LOAD = """{ .reg .pred p; setp.ne.s32 p, $5, 0;
mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
@p ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {$0, $1, $2, $3}, [$4]; }"""
"""The whole 128-byte line is fetched into L2 though a lane takes 16 bytes; nothing stays in L1."""


def _lane_of(builder: Any) -> Any:
    from llvmlite import ir

    kind = ir.FunctionType(ir.IntType(32), [])
    return builder.call(ir.InlineAsm(kind, "mov.u32 $0, %laneid;", "=r", side_effect=False), [])


def _fetch(rows: int, units: int) -> Any:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic
    from numba.cuda.np import arrayobj

    word, long = ir.IntType(32), ir.IntType(64)
    four = ir.LiteralStructType([word] * 4)
    load = ir.InlineAsm(ir.FunctionType(four, [long, word]), _LOAD, "=&r,=&r,=&r,=&r,l,r", side_effect=True)

    @intrinsic
    def fetch(context, weights, start, stride, first, k):
        each = BYTES * 8 // weights.dtype.bitwidth

        def codegen(context, builder, signature, args):
            data = arrayobj.make_array(signature.args[0])(context, builder, args[0]).data
            _, begin, step, at, size = args
            own = builder.add(at, builder.mul(_lane_of(builder), word(each)))
            words = []
            for r in range(rows):
                row = builder.add(begin, builder.mul(step, long(r)))
                base = builder.gep(data, [builder.add(row, builder.sext(own, long))])
                for u in range(units):
                    inside = builder.icmp_signed("<", builder.add(own, word(u * LANES * each)), size)
                    address = builder.ptrtoint(builder.gep(base, [long(u * LANES * each)]), long)
                    found = builder.call(load, [address, builder.zext(inside, word)])
                    words += [builder.extract_value(found, i) for i in range(4)]
            return context.make_tuple(builder, signature.return_type, words)

        return types.UniTuple(types.uint32, 4 * rows * units)(weights, types.int64, types.int64, types.int32, types.int32), codegen

    return fetch


def _dots(rows: int, units: int) -> Any:
    from llvmlite import ir
    from numba.core import cgutils
    from numba.cuda import types
    from numba.cuda.extending import intrinsic
    from numba.cuda.np import arrayobj

    word, long = ir.IntType(32), ir.IntType(64)

    @intrinsic
    def dots(context, weights, words, x, rows_of_x, first, k):
        each = BYTES * 8 // weights.dtype.bitwidth
        assert x.dtype == weights.dtype, f"x is {x.dtype}, the weights are {weights.dtype}"

        def codegen(context, builder, signature, args):
            data = arrayobj.make_array(signature.args[2])(context, builder, args[2]).data
            loaded, places = (cgutils.unpack_tuple(builder, a) for a in (args[1], args[3]))
            own = builder.add(args[4], builder.mul(_lane_of(builder), word(each)))
            last = builder.sub(args[5], word(each))
            sums = [ir.Constant(ir.FloatType(), 0.0)] * (rows * len(places))
            for u in range(units):
                at = builder.add(own, word(u * LANES * each))
                at = builder.sext(builder.select(builder.icmp_signed("<", at, last), at, last), long)
                values = [_sixteen(builder, weights.dtype, builder.gep(data, [builder.add(place, at)])) for place in places]
                for r in range(rows):
                    four = loaded[4 * (r * units + u) :][:4]
                    for i, weight in enumerate(f for one in four for f in _floats(builder, weights.dtype, one)):
                        for n, value in enumerate(values):
                            sums[r * len(places) + n] = builder.fma(weight, value[i], sums[r * len(places) + n])
            return context.make_tuple(builder, signature.return_type, sums)

        result = types.UniTuple(types.float32, rows * len(rows_of_x))
        return result(weights, words, x, types.UniTuple(types.int64, len(rows_of_x)), types.int32, types.int32), codegen

    return dots


def _sixteen(builder: Any, dtype: Any, pointer: Any) -> list[Any]:
    """The elements in 16 bytes of global memory, as float32, by one cached load."""
    from llvmlite import ir

    word = ir.IntType(32)
    vector = builder.load(builder.bitcast(pointer, ir.VectorType(word, 4).as_pointer()), align=BYTES)
    return [value for i in range(4) for value in _floats(builder, dtype, builder.extract_element(vector, word(i)))]
