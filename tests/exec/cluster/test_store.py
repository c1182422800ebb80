from __future__ import annotations

import pytest

from exec.cluster.rows import Piece, RowMemory
from exec.cluster.store import Store
from exec.runtime import HazardError


def test_a_buffer_is_not_overwritten_before_it_was_read() -> None:
    store = Store()
    store.write("recv.0.1.0", "rows")
    with pytest.raises(HazardError, match=r"recv\.0\.1\.0.*overwritten before it was read"):
        store.write("recv.0.1.0", "others")
    assert store.take("recv.0.1.0") == "rows"
    store.write("recv.0.1.0", "others")
    assert store.left() == ["recv.0.1.0"]


def test_pieces_of_two_sizes_never_leave_gaps() -> None:
    rows = RowMemory(4, landing=(5, 2), sending=(7, 1))
    first, second, own = rows.land(), rows.land(), rows.send()
    assert {first, second} == {Piece(0, 5), Piece(5, 5)}
    assert own == Piece(10, 7)
    with pytest.raises(AssertionError, match="all pieces for landing are taken"):
        rows.land()
    rows.give(own)
    rows.give(first)
    assert (rows.land(), rows.send()) == (first, own)
    assert rows.of(own).shape == (7, 4)
