"""The three tiers together: what reaches the device is the checkpoint's, and loads that make way go on where they were."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from exec.arena import Arena
from exec.links import Link
from exec.pool.pool import ExpertPool, Store
from exec.runtime import Interrupt, Interrupted
from sim.errors import UserError
from tests.exec.pool import checkpoints
from tests.exec.pool.checkpoints import LARGE, SPEC


def pool(store: Store, host: int, device: int) -> ExpertPool:
    size = store.expert_floats
    room = 4 * size + 64
    return ExpertPool(
        store, Arena("cpu", host * room, poison=True).take("experts", host * size),
        Arena("gpu", device * room, poison=True).take("experts", device * size),
    )  # fmt: skip


def test_disk_to_host_to_device(tmp_path: Path) -> None:
    weights = checkpoints.small(tmp_path)
    with Store(tmp_path, SPEC) as store:
        p, nvme, h2d = pool(store, 3, 2), Link("nvme"), Link("h2d")
        for k, expert in enumerate([(0, 1), (1, 7), (0, 5), (1, 2)]):
            p.read(k % 3, expert, nvme, Interrupt())
            p.load(k % 3, k % 2, expert, h2d, Interrupt())
        assert p.host.held() == {0: (1, 2), 1: (1, 7), 2: (0, 5)} and p.device.held() == {0: (0, 5), 1: (1, 2)}
        with p.experts([(0, (0, 5)), (1, (1, 2))]) as views:
            for view, (layer, e) in zip(views, [(0, 5), (1, 2)], strict=True):
                assert (view == weights.experts[layer].reshape(SPEC.experts, -1)[e]).all()
        assert nvme.moved_bytes == h2d.moved_bytes == 4 * 4 * store.expert_floats


def test_a_failed_read_leaves_the_slot_empty_and_the_others_whole(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    checkpoints.flip(tmp_path, "model.layers.0.block_sparse_moe.experts.4.w3.weight")
    with Store(tmp_path, SPEC) as store:
        p = pool(store, 2, 2)
        p.read(0, (0, 0), Link("nvme"), Interrupt())
        p.read(1, (0, 1), Link("nvme"), Interrupt())
        with pytest.raises(UserError, match="experts.4.w3.weight"):
            p.read(1, (0, 4), Link("nvme"), Interrupt())
        assert p.host.held() == {0: (0, 0)}
        with pytest.raises(AssertionError, match=r"\(0, 4\) wanted, holds nothing"):
            p.load(1, 0, (0, 4), Link("h2d"), Interrupt())


@pytest.mark.parametrize("lane", ["nvme", "h2d"])
def test_a_load_that_made_way_goes_on(tmp_path: Path, lane: str) -> None:
    wanted = checkpoints.large(tmp_path)
    with Store(tmp_path, LARGE) as store:
        p, link, total = pool(store, 1, 1), Link(lane, 4e8), 4 * store.expert_floats
        if lane == "h2d":
            p.read(0, (0, 1), Link("nvme"), Interrupt())

        def go(stop: Interrupt, nbytes: int) -> None:
            p.read(0, (0, 1), link, stop, nbytes) if lane == "nvme" else p.load(0, 0, (0, 1), link, stop, nbytes)

        left, steps = total, 0
        while left:
            stop = _StopsSoon()
            try:
                go(stop, left)
                left = 0
            except Interrupted as made_way:
                assert 0 < made_way.fraction_done < 1
                left -= round(left * made_way.fraction_done)
                steps += 1
        assert steps >= 2, "it was never in the way"
        tier = p.host if lane == "nvme" else p.device
        with tier.using([(0, (0, 1))]) as (view,):
            assert (view == wanted[1]).all()
        assert total <= link.moved_bytes <= 1.5 * total


class _StopsSoon(Interrupt):
    """Set once the transfer has begun to move: a thread sets it after some milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        threading.Timer(0.01, self.set).start()


def test_memory_is_the_arenas_and_poison_never_shows(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    with Store(tmp_path, SPEC) as store:
        p = pool(store, 8, 8)
        for e in range(8):
            p.read(e, (1, e), Link("nvme"), Interrupt())
            p.load(e, e, (1, e), Link("h2d"), Interrupt())
        with p.experts([(e, (1, e)) for e in range(8)]) as views:
            assert not any(np.isnan(v).any() for v in views)
        assert p.device.peak_bytes == p.device.budget_bytes
