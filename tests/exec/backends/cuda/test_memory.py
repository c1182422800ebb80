"""Memory that streams share: who takes bytes again waits for their last use, and the budget is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exec.backends.cuda.device import Token
from exec.backends.cuda.memory import StreamArena, StreamBuffers
from exec.state import MicroBatch
from sim.errors import UserError


class Event:
    def __init__(self, done: bool = False) -> None:
        self.done = done
        self.waited = 0

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waited += 1


def token(done: bool = False) -> Token:
    return Token(object(), Event(done))  # type: ignore[arg-type]


def arena(size: int = 1024) -> StreamArena:
    return StreamArena("gpu", size, torch.zeros(size, dtype=torch.uint8))


def batch(rows: int = 4) -> MicroBatch:
    return MicroBatch((0,), np.array([0, rows]), np.zeros(1, np.int64))


def test_whoever_takes_a_piece_again_waits_for_its_last_use() -> None:
    a, used = arena(128), token()
    a.take("first", 32)
    a.give("first", [used])
    after: list[Token] = []
    a.take("second", 16, after=after)
    assert after == [used]
    rest: list[Token] = []
    a.take("third", 16, after=rest)
    assert rest == [used]


def test_a_use_that_is_over_is_not_waited_for() -> None:
    a = arena(128)
    a.take("first", 32)
    a.give("first", [token(done=True)])
    after: list[Token] = []
    a.take("second", 32, after=after)
    assert after == []


def test_only_the_bytes_in_question_count() -> None:
    a, left, right = arena(256), token(), token()
    a.take("left", 16)
    a.take("right", 16)
    a.give("left", [left])
    a.give("right", [right])
    after: list[Token] = []
    a.take("again", 16, after=after)
    assert after == [left]


def test_without_a_list_the_host_waits() -> None:
    a, used = arena(64), token()
    a.take("first", 16)
    a.give("first", [used])
    a.take("second", 16)
    assert used.event.waited == 1  # type: ignore[attr-defined]


def test_the_budget_is_hard() -> None:
    a = arena(256)
    a.take("most", 48)
    with pytest.raises(UserError, match="memory 'gpu': 64 bytes are missing for more"):
        a.take("more", 32)
    assert a.peak_bytes == 192


def test_a_buffer_written_again_waits_for_all_that_touched_it() -> None:
    b = StreamBuffers({"gpu": arena(64)})
    b.write("hidden.0", (2, 8), batch(), [])
    first, second = token(), token()
    b.used(["hidden.0"], first)
    b.used(["hidden.0"], second)
    after: list[Token] = []
    b.write("hidden.0", (2, 8), batch(), after)
    assert after == [first, second]


def test_a_stream_is_waited_for_once() -> None:
    b = StreamBuffers({"gpu": arena(64)})
    b.write("hidden.0", (2, 8), batch(), [])
    early = token()
    late = Token(early.stream, Event())  # type: ignore[arg-type]
    b.used(["hidden.0"], early)
    b.used(["hidden.0"], late)
    assert b.read("hidden.0").tokens == [late]


def test_a_buffer_is_dropped_after_the_last_of_its_uses() -> None:
    b = StreamBuffers({"gpu": arena(64)})
    b.write("qkv.0", (2, 8), batch(), [])
    uses = frozenset({"attended", "stored"})
    b.used_for("qkv.0", "attended", uses)
    b.read("qkv.0")
    b.used_for("qkv.0", "stored", uses)
    with pytest.raises(AssertionError, match="qkv.0 holds nothing"):
        b.read("qkv.0")
