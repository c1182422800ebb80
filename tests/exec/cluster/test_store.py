from __future__ import annotations

import pytest

from exec.cluster.rows import Piece, RowMemory
from exec.cluster.store import Store
from exec.runtime import HazardError
from sim.errors import UserError


def test_a_buffer_is_not_overwritten_before_it_was_read() -> None:
    store = Store()
    store.write("recv.0.1.0", "rows")
    with pytest.raises(HazardError, match=r"recv\.0\.1\.0.*overwritten before it was read"):
        store.write("recv.0.1.0", "others")
    assert store.take("recv.0.1.0") == "rows"
    store.write("recv.0.1.0", "others")
    assert store.left() == ["recv.0.1.0"]


def test_rows_are_handed_out_and_given_back() -> None:
    rows = RowMemory(10, 4)
    first, second = rows.take(6), rows.take(4)
    assert (first, second, rows.peak) == (Piece(0, 6), Piece(6, 4), 10)
    with pytest.raises(UserError, match="1 rows are missing, 0 of 10 are free"):
        rows.take(1)
    rows.give(first)
    assert rows.take(3) == Piece(0, 3)
    assert rows.of(second).shape == (4, 4)
