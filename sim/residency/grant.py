"""What the table of slots answers: loads to make, what an event gets, or why it gets nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Load(NamedTuple):
    """Copy the expert `key` into `slot`. stays: whether it was admitted; else it is on a visit."""

    key: int
    slot: int
    stays: bool


class Refusal(NamedTuple):
    """Nothing was changed, because..."""

    reason: str


@dataclass(slots=True)
class Grant:
    """What an event gets.

    hits, late, missed: keys that are here, on their way, neither. slots: of hits and of what is late. waves: loads that
    can be done together; a later wave reuses slots of an earlier one's visitors. promotions: loads that nobody waits for,
    since their experts are computed elsewhere. cancelled: keys on their way whose flight must end before any of these
    loads begins. guessed: keys asked for that had been fetched ahead.
    """

    layer: int
    hits: tuple[int, ...]
    late: tuple[int, ...]
    missed: tuple[int, ...]
    slots: dict[int, int]
    guessed: int = 0
    waves: list[list[Load]] = field(default_factory=list)
    promotions: list[Load] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
