"""Staging, and the ring of numbers, on a late device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exec.backends.cuda.numbers import Numbers
from exec.backends.cuda.staging import Staging
from exec.backends.cuda.standin import StandIn
from exec.runtime import Interrupt, Interrupted

SIZES = (3, 1000, 17, 2500, 64)


def pieces(device: StandIn) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(n), torch.randn(n)) for n in SIZES]


def test_pieces_arrive_whole_though_the_source_changes_at_once() -> None:
    device = StandIn(delay_s=1e-3)
    stream, staging, made = device.stream("h2d"), Staging(device, chunk_bytes=4096), pieces(StandIn())
    wanted = [here.clone() for _, here in made]
    staging.up(stream, made, Interrupt())
    for _, here in made:
        here.fill_(float("nan"))
    device.synchronize()
    for (there, _), expected in zip(made, wanted, strict=True):
        assert torch.equal(there, expected)


def test_an_interrupt_stops_between_chunks() -> None:
    device = StandIn()
    stop = Interrupt()
    stop.set()
    with pytest.raises(Interrupted) as raised:
        Staging(device, chunk_bytes=4096).up(device.stream("h2d"), pieces(device), stop)
    assert raised.value.fraction_done == 0


def test_rows_come_down_in_order() -> None:
    device = StandIn(delay_s=1e-3)
    source = torch.randn(100, 8)
    found: list[tuple[int, torch.Tensor]] = []
    ranges = [(a, min(a + 13, 100)) for a in range(0, 100, 13)]
    Staging(device, chunk_bytes=13 * 12).down(device.stream("d2h"), source[:, 5:], ranges, lambda i, part: found.append((i, part.clone())))
    assert [i for i, _ in found] == list(range(len(ranges)))
    assert torch.equal(torch.cat([part for _, part in found]), source[:, 5:])


def test_numbers_are_read_before_they_are_overwritten() -> None:
    """Uploads of many times the ring's size, each read late: what a task reads is its own."""
    device = StandIn(delay_s=2e-4)
    stream = device.stream("gpu")
    ring = Numbers(device, stream, 4096)
    sums: list[int] = []
    for k in range(60):
        a, b = ring.upload([np.full(30, k), np.full(40, 2 * k)])
        stream.run(lambda a=a, b=b: sums.append(int(a.sum() + b.sum())))
    device.synchronize()
    assert sums == [30 * k + 80 * k for k in range(60)]
