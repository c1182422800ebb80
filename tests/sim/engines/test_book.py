"""Rows of tasks by number."""

from __future__ import annotations

import pytest

from sim.engines.book import Book
from sim.engines.slots import Rates
from sim.tasks import Task, Work
from tests.engine_support.fakes import FakeCosts


@pytest.mark.parametrize(
    ("numbers", "rows"),
    [((), {-1: -1, 0: -1, 1: -1}), ((3,), {2: -1, 3: 0, 4: -1}), ((3, 4, 9), {0: -1, 3: 0, 4: 1, 5: -1, 8: -1, 9: 2, 10: -1})],
)
def test_a_row_is_found_by_number(numbers: tuple[int, ...], rows: dict[int, int]) -> None:
    costs = FakeCosts({}, {})
    book = Book((), {}, costs, Rates(costs.capacity, 1))
    for number in numbers:
        book.add_task(Task(number, Work("join")))
    assert {number: book.index(number) for number in rows} == rows
