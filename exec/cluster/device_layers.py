"""The MoE layer on one rank whose rows and weights are tensors of a device; who does what when is `MoELayers`'s."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from exec.backends.cuda import decoder, grouped
from exec.backends.cuda.decoder import DeviceLayer
from exec.cluster.device import RankDevice
from exec.cluster.experts import MoELayers
from exec.cluster.job import Order
from exec.cluster.rows import Piece, RowMemory
from exec.cluster.store import Part, Routes, Sent, Store
from exec.runtime import Record
from exec.weights import Weights

FEW, MANY = 2, 128
"""Rows for which kernels of few rows, and of many, run (`kernels.expert_ffn.gpu`)."""

SKEWED = 2
"""Experts take up to so many times the rows at once that they have where routing is even. More go one part after another: who takes
all rows of all ranks at once needs memory that hardly any run uses."""


class DeviceWeights(NamedTuple):
    """As `exec.weights.Weights`, on the device."""

    embed: torch.Tensor
    final_norm: torch.Tensor
    lm_head: torch.Tensor
    layers: Sequence[DeviceLayer]
    experts: Sequence[torch.Tensor]


def loaded(weights: Weights, device: RankDevice) -> DeviceWeights:
    """A copy on the device."""
    layers = [DeviceLayer(*map(device.up, layer.arrays())) for layer in weights.layers]
    dense = map(device.up, (weights.embed, weights.final_norm, weights.lm_head))
    return DeviceWeights(*dense, layers, [device.up(experts) for experts in weights.experts])


class DeviceMoE(MoELayers):
    """Ops run on the device's compute stream (`exec.cluster.device_backend`), which the host waits for: they may look at results.
    Rows of the row memory are found by number, as on the host."""

    def __init__(self, order: Order, rank: int, weights: DeviceWeights, rows: RowMemory, store: Store, device: RankDevice) -> None:
        self._device = device
        super().__init__(order, rank, weights, rows, store)

    def _make_room(self, most: int) -> None:
        """torch keeps what `warm_up` gives back."""
        order = self.order
        even = sum(map(order.rows_of, range(order.ranks))) * order.model.top_k // (order.ranks * order.chunks)
        self._most, self._at_once = max(1, most), max(MANY, SKEWED * even)

    def warm_up(self) -> None:
        """Have torch start its libraries, take the most memory that the run needs at a time, and compile our kernels: while a kernel
        waits for a peer that may not be possible. Few rows and many take different kernels."""
        model, there = self.model, self._device.there
        for tokens in (FEW, self._most):
            x = torch.zeros((tokens, model.hidden), device=there)
            ids, weights = self._routed(x, 0)[1:]
            rows, _, back = decoder.dispatch(model, x, ids)
            decoder.combine(rows, back, weights, x)
        for count in (FEW, self._at_once):
            rows = torch.zeros((count, model.hidden), device=there)
            self._run(self._experts_of(0), rows, np.array([count] + [0] * (self._own.experts - 1)))
        self._device.spare(4 * max(self._at_once * 3 * (model.ffn + model.hidden), self._most * model.top_k * 3 * model.hidden))

    def _routed(self, hidden: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Normed rows, the experts of each [t, k] int64, and their weights."""
        of = self._weights.layers[layer % self.model.layers]
        normed = decoder.rms_norm(hidden, of.ffn_norm, self.model.norm_eps)
        return normed, *decoder.route(normed @ of.router.t(), self.model.top_k, None)

    def _route(self, task: Record, forced: None = None) -> None:
        self.store.routes = Routes(*self._routed(self.store.hidden, task.layer))

    def _serving(self, layer: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Sequence[int]]:
        share = self.order.experts_per_rank
        return ids, ids // share, range(0, share * (self.order.ranks + 1), share)

    def _sort(
        self, rows: torch.Tensor, ids: torch.Tensor, server: torch.Tensor, first: Sequence[int], piece: Piece
    ) -> tuple[NDArray[np.int32], torch.Tensor]:
        ordered, offsets, back = decoder.dispatch(self.model, rows, ids)
        there = offsets.cpu().numpy()
        start = piece.first + 1
        for r in range(self.order.ranks):
            a, b = int(there[first[r]]), int(there[first[r + 1]])
            self._rows.array[start + r + a : start + r + b] = ordered[a:b]
        return there, back.view(ids.shape) + server + start

    def _run(self, experts: torch.Tensor, rows: torch.Tensor, counts: NDArray[np.int32]) -> None:
        for part, offsets in self._goes(counts):
            rows[part].copy_(grouped.expert_ffn(self._own, [experts], rows[part], offsets))

    def _goes(self, counts: NDArray[np.int32]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows that are sorted by expert, as many at a time as `warm_up` took memory for, and where each expert's begin among them."""
        ends = np.concatenate([[0], np.cumsum(counts)])
        for start in range(0, int(ends[-1]), self._at_once):
            stop = min(start + self._at_once, int(ends[-1]))
            yield slice(start, stop), self._device.up((np.clip(ends, start, stop) - start).astype(np.int32))

    def _gather_and_run(self, experts: torch.Tensor, parts: Sequence[Part]) -> None:
        runs = list(self._runs(parts))
        if not runs:
            return
        places = self._device.up(np.concatenate([np.arange(start, start + count) for _, start, count in runs]))
        array = self._rows.array
        for part, offsets in self._goes(np.sum([p.counts for p in parts], axis=0)):
            rows = array.index_select(0, places[part])
            array.index_copy_(0, places[part], grouped.expert_ffn(self._own, [experts], rows, offsets))

    def _sum(self, sent: Sent, moved: NDArray[np.int32], weights: torch.Tensor, out: torch.Tensor) -> None:
        places = sent.positions + self._device.up(moved)[sent.server]
        decoder.combine(self._rows.array, places.flatten(), weights, out)
