"""Elementary functions that vectorise: Numba without SVML calls libm once an element."""

from __future__ import annotations

import numpy as np

from kernels.jit import inline

_LOW, _HIGH = np.float32(-87.0), np.float32(88.0)
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE, _BIAS, _MANTISSA_BITS = np.float32(1), np.int32(127), np.int32(23)


@inline
def exp(x):
    """e^x of one float32, within 2e-7 of it; x is clamped to [-87, 88].

    Cephes expf (S. Moshier): x = n ln 2 + r, a polynomial of degree 6 for e^r, 2^n by its bits.
    """
    x = min(max(x, _LOW), _HIGH)
    n = np.rint(x * _LOG2_E)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    power = np.int32(np.int32(np.int32(n) + _BIAS) << _MANTISSA_BITS).view(np.float32)
    return (p * r * r + r + _ONE) * power
