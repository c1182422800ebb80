"""What a device's warm-up takes, a run finds: CUDA is asked for no memory while ranks wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exec.backends.cuda.standin import StandIn
from exec.cluster import shards
from exec.cluster.device import LARGE, SMALL, RankDevice
from exec.cluster.device_dense import DeviceDense
from exec.cluster.device_layers import SKEWED, DeviceMoE, loaded
from exec.cluster.rows import RowMemory
from exec.cluster.store import Part, Store
from tests.exec.cluster.setups import layers, serving

TOKENS, RANKS = 512, 4


class Made(TorchDispatchMode):
    """largest: bytes of the largest tensor that was made, of memory that was not there before."""

    largest = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {place(t) for t in tensors((args, kwargs))}
        self.largest = max([self.largest, *(t.untyped_storage().nbytes() for t in tensors(out) if place(t) not in known)])
        return out


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.fixture
def device() -> Iterator[RankDevice]:
    with closing(StandIn()) as standin:
        yield RankDevice(standin)


@pytest.mark.parametrize("rows", [[TOKENS, TOKENS], [2 * TOKENS, 2 * TOKENS], [2 * TOKENS] * RANKS], ids=["even", "skewed", "all"])
def test_experts_take_no_more_than_at_the_warm_up(rows: list[int], device: RankDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows from each peer, which all are one expert's: as many as arrive with even routing, twice as many, and all that there are."""
    order = layers([TOKENS] * RANKS, "bulk-sync").order
    memory = RowMemory(order.model.hidden, (max(rows) + 1, len(rows)), (1, 1), device.take)
    moe = DeviceMoE(order, 0, loaded(shards.shard(order, 0), device), memory, Store(), device)
    monkeypatch.setattr(device, "spare", lambda nbytes: None)
    with Made() as warm:
        moe.warm_up()
    counts = np.eye(1, order.experts_per_rank, dtype=np.int32)[0]
    pieces = [memory.land() for _ in rows]
    parts = [Part(piece, piece.first + 1, count * counts) for piece, count in zip(pieces, rows, strict=True)]
    with Made() as ran:
        moe._gather_and_run(moe._experts_of(0), parts)
        moe._run(moe._experts_of(0), memory.array[: sum(rows)], sum(rows) * counts)
    assert 0 < ran.largest <= warm.largest
    assert warm.largest == 4 * SKEWED * TOKENS * order.model.top_k * 2 * order.model.ffn


def test_a_model_takes_no_more_than_at_the_warm_up(device: RankDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill of all prompts, and steps that decode all sequences until their end."""
    order = serving(5, 2, "bulk-sync").order
    dense = DeviceDense(order, 0, loaded(shards.shard(order, 0), device), Store(), device)
    monkeypatch.setattr(device, "spare", lambda nbytes: None)
    with Made() as warm:
        dense.warm_up()
    mine = [order.requests[k] for k in order.requests_of(0)]
    requests, rows = tuple(r.request_id for r in mine), sum(r.prompt_tokens for r in mine)
    with Made() as ran:
        for step in range(5):
            phase = "decode" if step else "prefill"
            task = SimpleNamespace(phase=phase, requests=requests, layer=0, work=SimpleNamespace(tokens=rows))
            for op in ("embed", "pre_attn", f"attn_{phase}", "o_proj", "sample"):
                dense.ops()[op](task, None)  # type: ignore[arg-type]
    assert dense.sequences.outputs().keys() == set(requests)
    assert 0 < ran.largest <= warm.largest


def test_spare_memory_is_one_large_piece_and_many_small_ones(device: RankDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(device._device, "allocate", lambda nbytes: asked.append(nbytes))
    device.spare(LARGE // 2)
    device.spare(3 * LARGE)
    assert sorted(set(asked)) == [SMALL, LARGE, 3 * LARGE]
    assert asked.count(SMALL) > 20
