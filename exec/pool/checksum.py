"""XXH64 (Yann Collet's specification, doc/xxhash_spec.md, "XXH64 Algorithm Description"), seed 0, without the GIL.

It guards against accidents, not against somebody who could as well rewrite the manifest beside the file. A
cryptographic hash costs several times as much: on a Zen 5 core SHA-256 with the processor's own instructions
takes 0.56 ns a byte, so that two cores could not keep up with one disk (docs/expert-pool.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.jit import jit

NAME = "xxh64"

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)


def xxh64(raw: NDArray[np.uint8]) -> int:
    """Checksum of the bytes [n]."""
    if raw.ctypes.data % 8:
        raw = raw.copy()  # the loop below reads aligned words
    whole = raw.size // 8 * 8
    return int(_xxh64(raw[:whole].view(np.uint64), raw[whole:]))


@jit
def _rotated(x, bits):
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@jit
def _round(lane, word):
    return _rotated(lane + word * _P2, 31) * _P1


@jit
def _merged(h, lane):
    return (h ^ _round(np.uint64(0), lane)) * _P1 + _P4


@jit
def _xxh64(words, rest):
    """words [n] uint64; rest: the last 0 to 7 bytes."""
    n = words.size
    stripes = n // 4
    if stripes:
        a, b, c, d = _P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1
        for i in range(stripes):
            a = _round(a, words[4 * i])
            b = _round(b, words[4 * i + 1])
            c = _round(c, words[4 * i + 2])
            d = _round(d, words[4 * i + 3])
        h = _rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)
        h = _merged(_merged(_merged(_merged(h, a), b), c), d)
    else:
        h = _P5
    h += np.uint64(8 * n + rest.size)
    for i in range(4 * stripes, n):
        h = _rotated(h ^ _round(np.uint64(0), words[i]), 27) * _P1 + _P4
    at = 0
    if rest.size >= 4:
        half = np.uint64(0)
        for i in range(3, -1, -1):
            half = half << np.uint64(8) | np.uint64(rest[i])
        h = _rotated(h ^ (half * _P1), 23) * _P2 + _P3
        at = 4
    for i in range(at, rest.size):
        h = _rotated(h ^ (np.uint64(rest[i]) * _P5), 11) * _P1
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))
