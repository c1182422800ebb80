"""Elements of weights and activations in CUDA kernels: arithmetic is float32, storage is narrower.

`widen(x)` makes an array element a float32, `narrow(array, x)` makes a float32 an element of that
array, rounding to nearest even. bfloat16 is the upper half of a float32 (16 bits of uint16), so it
works on every architecture and in the simulator.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.jit import primitive

_HALF, _ROUND, _ONE = np.uint32(16), np.uint32(0x7FFF), np.uint32(1)


@primitive
def float_bits(x):
    """The bits of a float32, as uint32."""
    return np.float32(x).view(np.uint32)


@primitive
def bits_float(x):
    """The float32 with the bits of a uint32."""
    return np.uint32(x).view(np.float32)


def _bitcast(wanted: str) -> Any:
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    to = getattr(types, wanted)
    given = types.uint32 if wanted == "float32" else types.float32

    @intrinsic
    def cast(context, x):
        def codegen(context, builder, signature, args):
            return builder.bitcast(args[0], context.get_value_type(to))

        return to(given), codegen

    return cast


@float_bits.compiled
def _float_bits() -> Any:
    return _bitcast("uint32")


@bits_float.compiled
def _bits_float() -> Any:
    return _bitcast("float32")


def round_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits [uint16] of float32 numbers rounded to bfloat16, to nearest even; NaN stays NaN. For the host."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = ((bits + _ROUND + (bits >> _HALF & _ONE)) >> _HALF).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 numbers of bfloat16 bits [uint16]. For the host."""
    return (bits.astype(np.uint32) << _HALF).view(np.float32)


@primitive
def widen(x):
    """An element as float32."""
    if isinstance(x, np.uint16):
        return (np.uint32(x) << _HALF).view(np.float32)
    return np.float32(x)


@primitive
def narrow(array, x):
    """A float32 as an element of `array`."""
    if array.dtype == np.uint16:
        return round_bfloat16(np.float32(x))[()]
    return array.dtype.type(x)


@widen.compiled
def _widen() -> Any:
    from numba.cuda import types
    from numba.cuda.extending import overload

    cast = bits_float.target

    def element(x):
        raise NotImplementedError

    @overload(element, inline="always")
    def typed(x):
        if x == types.uint16:
            return lambda x: cast(np.uint32(np.uint32(x) << _HALF))
        return lambda x: np.float32(x)

    return element


@narrow.compiled
def _narrow() -> Any:
    from numba.cuda import types
    from numba.cuda.extending import overload

    bits_of = float_bits.target

    def element(array, x):
        raise NotImplementedError

    def bfloat16(array, x):
        bits = bits_of(x)
        if x != x:
            return np.uint16(0x7FC0)
        return np.uint16((bits + _ROUND + ((bits >> _HALF) & _ONE)) >> _HALF)

    @overload(element)
    def typed(array, x):
        if array.dtype == types.uint16:
            return bfloat16
        kind = np.float16 if array.dtype == types.float16 else np.float32
        return lambda array, x: kind(x)

    return element
