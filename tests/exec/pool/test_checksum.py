"""XXH64 as others compute it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exec.pool.checksum import xxh64


@pytest.mark.parametrize("text, wanted", [
    (b"", 0xEF46DB3751D8E999),
    (b"a", 0xD24EC4F1A98C6E5B),
    (b"abc", 0x44BC2CF5AD770999),
    (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
])  # fmt: skip
def test_known_sums(text: bytes, wanted: int) -> None:
    """Of the reference implementation: its own sanity vector for no bytes, and those of the Python and Rust bindings' tests."""
    assert xxh64(np.frombuffer(text, np.uint8)) == wanted


@given(st.binary(max_size=200), st.data())
def test_any_flipped_bit_shows_and_alignment_does_not(text: bytes, data: st.DataObject) -> None:
    plain = xxh64(np.frombuffer(text, np.uint8))
    shift = data.draw(st.integers(0, 7))
    assert xxh64(np.frombuffer(bytes(shift) + text, np.uint8)[shift:]) == plain
    if text:
        changed = bytearray(text)
        changed[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        assert xxh64(np.frombuffer(bytes(changed), np.uint8)) != plain
