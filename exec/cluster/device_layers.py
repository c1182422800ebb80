"""The MoE layer on one rank whose rows and weights are tensors of a device; who does what when is `MoELayers`'s."""

from __future__ import annotations

from collections.abc import Sequence
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
        self._most = most

    def warm_up(self) -> None:
        """Have torch start its libraries, take the memory that it needs, and compile our kernels: while a kernel waits for a peer
        that may not be possible. Few rows and many take different kernels."""
        for tokens in (2, max(64, self._most)):
            x = torch.zeros((tokens, self.model.hidden), device=self._device.there)
            ids, weights = self._routed(x, 0)[1:]
            rows, _, back = decoder.dispatch(self.model, x, ids)
            self._run(self._experts_of(0), rows, np.diff(np.linspace(0, len(rows), self._own.experts + 1).astype(np.int32)))
            decoder.combine(rows, back, weights, x)

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
        if len(rows):
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            rows.copy_(grouped.expert_ffn(self._own, [experts], rows, self._device.up(offsets)))

    def _gather_and_run(self, experts: torch.Tensor, parts: Sequence[Part]) -> None:
        runs = list(self._runs(parts))
        if not runs:
            return
        places = self._device.up(np.concatenate([np.arange(start, start + count) for _, start, count in runs]))
        rows = self._rows.array.index_select(0, places)
        self._run(experts, rows, np.sum([p.counts for p in parts], axis=0))
        self._rows.array.index_copy_(0, places, rows)

    def _sum(self, sent: Sent, moved: NDArray[np.int32], weights: torch.Tensor, out: torch.Tensor) -> None:
        places = sent.positions + self._device.up(moved)[sent.server]
        decoder.combine(self._rows.array, places.flatten(), weights, out)
