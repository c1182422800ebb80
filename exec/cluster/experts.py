"""The MoE layer on one rank: gate, permute, puts, experts, unpermute, as `sim.ep` describes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exec import decoder
from exec.cluster.job import Order
from exec.cluster.mesh import Landing, Mesh
from exec.cluster.rows import Floats, Piece, RowMemory, lasting
from exec.cluster.store import Part, Routes, Sent, Store
from exec.products import product
from exec.runtime import Interrupt, Record
from exec.weights import Weights
from kernels import combine, dispatch, rms_norm
from sim.ep import names
from sim.events import Result
from sim.schedulers.ep.kernels import chunk_rows

Op = Callable[[Record, Interrupt], Result | None]

PROBE = "probe"
"""Variant of puts that calibration times, and the kind of buffer that they fill."""


def run_experts(sizes: SimpleNamespace, experts: Floats, rows: Floats, counts: NDArray[np.int32], space: Floats) -> None:
    """FFNs of `sizes.experts` experts over their rows [n, H] in place, as many rows at a time as one kernel takes together.
    space: `space_floats`."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    for start in range(0, len(rows), decoder.EXPERT_ROWS):
        part = rows[start : start + decoder.EXPERT_ROWS]
        decoder.run_experts(sizes, (experts,), part, np.clip(offsets - start, 0, len(part)).astype(np.int32), decoder.Scratch(space))


def space_floats(ffn: int) -> int:
    """Intermediates of `run_experts`."""
    return 3 * ffn * decoder.EXPERT_ROWS


class MoELayers:
    """Ops of the layers' expert part.

    mesh, numbers: streams to the peers, and the Plan's number of each local record; set before a run.
    A schedule of more layers than there are weights goes through them again.
    counts: (layer, step, chunk, rows that this rank had for each expert [experts]) of each permute.
    """

    def __init__(self, order: Order, rank: int, weights: Weights, rows: RowMemory, store: Store) -> None:
        self.order, self.rank, self.model = order, rank, order.model
        self.mesh: Mesh | None = None
        self.numbers: Sequence[int] = ()
        self.counts: list[tuple[int, int, int, list[int]]] = []
        self._weights, self._rows, self.store = weights, rows, store
        self._own = SimpleNamespace(hidden=self.model.hidden, ffn=self.model.ffn, experts=order.experts_per_rank)
        self._make_room(order.rows_of(rank))

    def _make_room(self, most: int) -> None:
        """Intermediates of layers of so many rows."""
        self._normed = lasting("normed", (most, self.model.hidden))
        self._logits = lasting("logits", (most, self.model.experts))
        self._space = lasting("space", (space_floats(self.model.ffn),))
        self._gathered = lasting("gathered", (0, self.model.hidden))

    def ops(self) -> dict[str, Op]:
        return {
            "launch": self._nothing, "enter": self._nothing, "gate": self._gate, "permute": self._permute, "put": self._put,
            "experts": self._experts, "unpermute": self._unpermute,
        }  # fmt: skip

    def landed(self, name: str, landing: Landing) -> None:
        """A put has arrived in buffer `name`; what a probe sends nobody reads."""
        if name.startswith(PROBE):
            self._rows.give(landing.piece)
            return
        self.store.write(name, Part(landing.piece, landing.piece.first + 1, landing.counts))

    def warm_up(self) -> None:
        """Compile and load what the ops call, on few rows and on many."""
        for tokens in (5, 2 * decoder.EXPERT_ROWS):
            x = np.zeros((tokens, self.model.hidden), np.float32)
            logits, out = np.zeros((tokens, self.model.experts), np.float32), np.zeros((tokens * self.model.top_k, len(x[0])), np.float32)
            rms_norm.forward(x, np.ones(self.model.hidden, np.float32), self.model.norm_eps, np.empty_like(x))
            product(x, self._weights.layers[0].router, logits)
            ids, weights = decoder.route(logits, self.model.top_k)
            offsets, positions = np.empty(self.model.experts + 1, np.int32), np.empty(ids.shape, np.int32)
            dispatch.place(ids, offsets, positions)
            dispatch.permute(x, positions, out)
            experts, count = self._some_experts()
            self._run(experts, out, np.diff(np.linspace(0, len(out), count + 1).astype(np.int32)))
            combine.forward(out, positions, weights, x)

    def _some_experts(self) -> tuple[Any, int]:
        """Experts of any layer to warm up with, and how many they are."""
        return self._weights.experts[0], self.order.experts_per_rank

    def _nothing(self, task: Record, _: Interrupt) -> None:
        """What a GPU's host does here takes a thread's wake-up: the call that follows is launch and kernel in one."""

    # Before the experts -------------------------------------------------------------------------

    def _gate(self, task: Record, _: Interrupt) -> Result | None:
        self._route(task)
        return None

    def _route(self, task: Record, forced: NDArray[np.int16] | None = None) -> None:
        """forced: experts [t, k] in place of those that the router would choose."""
        hidden = self.store.hidden
        layer = self._weights.layers[task.layer % self.model.layers]
        normed, logits = self._normed[: len(hidden)], self._logits[: len(hidden)]
        if len(hidden):
            rms_norm.forward(hidden, layer.ffn_norm, self.model.norm_eps, normed)
            product(normed, layer.router, logits)
        self.store.routes = Routes(normed, *decoder.route(logits, self.model.top_k, forced))

    def _permute(self, task: Record, _: Interrupt) -> None:
        """Rows by expert, with one row before each peer's for the header of its message."""
        routes = self.store.routes
        tokens = chunk_rows(len(routes.ids), task.microbatch, self.order.chunks)
        ids, server, first = self._serving(task.layer, routes.ids[tokens.start : tokens.stop])
        piece = self._rows.send()
        offsets, positions = self._sort(routes.normed[tokens.start : tokens.stop], ids, server, first, piece)
        counts = np.diff(offsets)
        parts = tuple(
            Part(piece, piece.first + 1 + r + int(offsets[first[r]]), counts[first[r] : first[r + 1]]) for r in range(self.order.ranks)
        )
        self.counts.append((task.layer, task.step, task.microbatch, counts.tolist()))
        self.store.write(task.writes[0], Sent(piece, parts, positions, server, tokens.start))

    def _sort(
        self, rows: Floats, ids: NDArray[np.int16], server: NDArray[np.int32], first: Sequence[int], piece: Piece
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Write `rows` [t, H] into `piece`; offsets [copies + 1] of each copy's rows, and where each row's copies are [t, k]."""
        offsets, positions = np.empty(first[-1] + 1, np.int32), np.empty(ids.shape, np.int32)
        dispatch.place(ids, offsets, positions)
        positions += server + np.int32(piece.first + 1)
        dispatch.permute(rows, positions, self._rows.array)
        return offsets, positions

    def _serving(self, layer: int, ids: NDArray[np.int16]) -> tuple[NDArray[np.int16], NDArray[np.int32], Sequence[int]]:
        """What serves each row: the copy [t, k] of its expert, that copy's rank [t, k]; and the first copy of each rank [ranks + 1],
        copies being numbered rank by rank. Here each expert is its own only copy."""
        share = self.order.experts_per_rank
        return ids, (ids // share).astype(np.int32), range(0, share * (self.order.ranks + 1), share)

    # Puts ---------------------------------------------------------------------------------------

    def _put(self, task: Record, _: Interrupt) -> None:
        assert self.mesh is not None and task.lane is not None
        peer = int(task.lane.rpartition(".")[2])
        if task.work.variant == PROBE:
            piece = self._rows.land()
            self.mesh.put(peer, self.numbers[task.number], Piece(piece.first, task.work.tokens + 1), ())
            self._rows.give(piece)
        elif task.work.variant == "dispatch":
            part = self.store.read(task.reads[0]).parts[peer]
            self.mesh.put(peer, self.numbers[task.number], part.message, part.counts)
        else:
            part = self.store.take(task.reads[0])
            self.mesh.put(peer, self.numbers[task.number], part.message, part.counts)
            self._rows.give(part.piece)

    # Experts ------------------------------------------------------------------------------------

    def _experts(self, task: Record, _: Interrupt) -> None:
        """In place: the results of a part lie where its rows lay, and go back from there."""
        parts = [self._arrived(name) for name in task.reads[: len(task.writes)]]
        experts = self._experts_of(task.layer % self.model.layers)
        if len(parts) == 1:
            self._run(experts, self._data(parts[0]), parts[0].counts)
        else:
            self._gather_and_run(experts, parts)
        for name, part in zip(task.writes, parts, strict=True):
            self.store.write(name, part)

    def _experts_of(self, layer: int) -> Any:
        """What `_run` takes."""
        return self._weights.experts[layer]

    def _arrived(self, name: str) -> Part:
        if name.startswith("send."):
            return self.store.read(name).parts[self.rank]
        return self.store.take(name)

    def _data(self, part: Part) -> Floats:
        return self._rows.array[part.first : part.first + part.rows]

    def _run(self, experts: Any, rows: Floats, counts: NDArray[np.int32]) -> None:
        if len(rows):
            run_experts(self._own, experts, rows, counts, self._space)

    def _gather_and_run(self, experts: Floats, parts: Sequence[Part]) -> None:
        """Each expert's rows of all sources together, so that its weights are read once."""
        total = sum(p.rows for p in parts)
        if len(self._gathered) < total:
            self._gathered = lasting("gathered", (total, self.model.hidden))
        rows = self._gathered[:total]
        runs = list(self._runs(parts))
        for to, start, count in runs:
            rows[to : to + count] = self._rows.array[start : start + count]
        self._run(experts, rows, np.sum([p.counts for p in parts], axis=0))
        for to, start, count in runs:
            self._rows.array[start : start + count] = rows[to : to + count]

    def _runs(self, parts: Sequence[Part]):
        """(row among the gathered, row in the row memory, rows) of each expert's rows from each source."""
        at = [p.first for p in parts]
        to = 0
        for e in range(self.order.experts_per_rank):
            for k, part in enumerate(parts):
                count = int(part.counts[e])
                if count:
                    yield to, at[k], count
                to, at[k] = to + count, at[k] + count

    # After the experts --------------------------------------------------------------------------

    def _unpermute(self, task: Record, _: Interrupt) -> None:
        routes = self.store.routes
        sent: Sent = self.store.take(names.send(self.rank, task.microbatch))
        moved = np.zeros(self.order.ranks, np.int32)
        returned: list[Piece] = []
        for name in task.reads[1:]:
            part: Part = self.store.take(name)
            r = int(name.split(".")[2])  # result.R.R.c, or back.R.r.c
            moved[r] = part.first - sent.parts[r].first
            if r != self.rank:
                returned.append(part.piece)
        assert moved[self.rank] == 0, (moved, sent)
        stop = sent.start + len(sent.positions)
        self._sum(sent, moved, routes.weights[sent.start : stop], self.store.hidden[sent.start : stop])
        for piece in (sent.piece, *returned):
            self._rows.give(piece)

    def _sum(self, sent: Sent, moved: NDArray[np.int32], weights: Floats, out: Floats) -> None:
        """out [t, H] += weighted results. moved [ranks]: how far from its rows what each rank computed of them lies."""
        combine.forward(self._rows.array, sent.positions + moved[sent.server], weights, out)
