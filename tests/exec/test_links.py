"""Links: bytes really move, at the stated rate, and stop when told to."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from exec.links import Link, sharpen_sleep
from exec.runtime import Interrupt, Interrupted


def _arrays(size):
    source = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    return source, np.zeros(size, np.uint8)


@pytest.mark.parametrize("rate", [None, 2e8])
@pytest.mark.parametrize("size", [1, 4096, (1 << 20) + 3])
def test_bytes_arrive_and_are_counted(rate, size):
    source, target = _arrays(size)
    link = Link("h2d", rate)
    assert link.copy(target, source, Interrupt()) == size == link.moved_bytes
    assert np.array_equal(source, target)
    assert link.paced == (rate is not None)


def test_shapes_may_differ_but_not_sizes():
    source = np.arange(6, dtype=np.float32).reshape(2, 3)
    target = np.zeros(6, np.float32)
    Link("h2d").copy(target, source, Interrupt())
    assert np.array_equal(target, source.ravel())
    with pytest.raises(AssertionError, match="24 bytes into 20"):
        Link("h2d").copy(target[:5], source, Interrupt())


def test_a_paced_copy_takes_its_time():
    """The best of a few tries, so that a busy computer does not fail the test; never early."""
    source, target = _arrays(8_000_000)
    link = Link("h2d", 4e8)
    link.copy(target[:10], source[:10], Interrupt())
    sharpen_sleep()
    ratios = []
    for _ in range(5):
        start = time.perf_counter()
        link.copy(target, source, Interrupt())
        ratios.append((time.perf_counter() - start) / 0.02)
    assert 1.0 <= min(ratios) < 1.05


def test_pieces_of_a_transfer_share_one_clock():
    source, target = _arrays(2_000_000)
    link = Link("d2h", 1e8)
    start = time.perf_counter()
    transfer = link.begin(source.nbytes, Interrupt())
    for k in range(0, source.size, 500_000):
        if k:
            transfer.copy(target[k : k + 500_000], source[k : k + 500_000])
        else:
            target[:500_000] = source[:500_000]
            transfer.count(500_000)
            assert time.perf_counter() - start >= 0.005
    assert time.perf_counter() - start >= 0.02
    assert transfer.moved == link.moved_bytes == source.size
    assert np.array_equal(source, target)


def test_an_interrupt_ends_a_long_copy():
    source, target = _arrays(1_000_000)
    interrupt = Interrupt()
    threading.Timer(0.05, interrupt.set).start()
    with pytest.raises(Interrupted) as caught:
        Link("h2d", 1e5).copy(target, source, interrupt)
    assert 0 < caught.value.fraction_done < 1


def test_other_threads_run_python_meanwhile():
    source, target = _arrays(1_000_000)
    link = Link("h2d", 2e7)
    copier = threading.Thread(target=link.copy, args=(target, source, Interrupt()))
    copier.start()
    turns = 0
    while copier.is_alive():
        turns += 1
    assert turns > 1000
