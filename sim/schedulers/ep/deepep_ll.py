"""DeepEP's low-latency kernels: every row is a message of its own, sent by the GPU, and no SM waits for it.

Order of a layer over two micro-batches, as in DeepSeek's decode (deepseek-ai/profile-data): the send half of a
dispatch or combine is a short kernel on the compute stream; the messages then travel alone, while the stream works on the
other micro-batch; a hook later enqueues the receive half, which waits for what has not arrived. Rows are dispatched in fp8 (hidden
bytes, a scale of 4 bytes for each 128 of them, 16 bytes of header) and combined in bf16 (DeepEP, docs/legacy.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.ep import names
from sim.models.spec import ModelSpec
from sim.schedulers.ep.kernels import Kernels, Launches, Layer
from sim.schedulers.ep.packets import check_rows
from sim.schedulers.policy import Policy
from sim.tasks import Work

SCALED = 128
"""Values that share a scale."""

HEADER_BYTES = 16


class DeepEPLowLatency(Kernels):
    """rows [ranks, experts]: what each rank sends to each expert, where a trace tells; None: upper bounds. chunks: micro-batches."""

    default_launches = Launches(gate=1, permute=1, dispatch=1, experts=3, combine=1, unpermute=1)
    default_chunks = 2

    def __init__(
        self, model: ModelSpec, policy: Policy, *, seed: int = 0, ranks: int = 8, layers: int = 1, chunks: int | None = None,
        launches: Launches | None = None, rows: NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, policy, seed=seed, ranks=ranks, layers=layers, chunks=chunks, launches=launches)
        self.rows = rows

    def add_layer(self, layer: Layer) -> None:
        exchange = Exchange(layer, self.rows)
        gated = layer.gate()
        arrived = []
        for c in range(self.chunks):
            arrived.append(exchange.send("dispatch", c, layer.permute(c, gated)))
        returned = []
        for c in range(self.chunks):
            received = exchange.receive("dispatch", c, arrived[c])
            done = [layer.experts(r, c, [received[r], *layer.launch("experts", layer.launches.experts, r, c)]) for r in layer.ranks]
            returned.append(exchange.send("combine", c, done))
        for c in range(self.chunks):
            layer.unpermute(c, exchange.receive_all("combine", c, returned[c]))


class Exchange:
    """Sends and receives of one layer. `messages` [ranks, ranks]: rows that each rank dispatches to each other one."""

    def __init__(self, layer: Layer, rows: NDArray[np.int64] | None) -> None:
        self.layer = layer
        shape, n = layer.shape, layer.shape.ranks
        self.row_bytes = {
            "dispatch": shape.hidden + -(-shape.hidden // SCALED) * 4 + HEADER_BYTES, "combine": 2 * shape.hidden,
        }  # fmt: skip
        self.whole = None if rows is None else check_rows(rows, shape.tokens, shape).reshape(n, n, -1).sum(axis=2)

    def messages(self, variant: str, source: int, target: int, chunk: int) -> int:
        a, b = (source, target) if variant == "dispatch" else (target, source)
        if self.whole is None:
            return self.layer.shape.most_rows(self.layer.tokens(a, chunk))
        total, parts = int(self.whole[a, b]), self.layer.chunks
        return total * (chunk + 1) // parts - total * chunk // parts

    def send(self, variant: str, chunk: int, ready: Sequence[int]) -> list[list[int]]:
        """A kernel on each rank, then its messages. Returns for each rank the puts that reach it."""
        layer, into = self.layer, [list[int]() for _ in ready]
        for a in layer.ranks:
            sent = self._half(f"{variant}-send", a, chunk, [ready[a]])
            for step in range(1, len(layer.ranks)):
                b = (a + step) % len(layer.ranks)
                into[b].append(self._put(variant, a, b, chunk, sent))
        return into

    def _put(self, variant: str, a: int, b: int, chunk: int, sent: int) -> int:
        rows = self.messages(variant, a, b, chunk)
        work = Work("put", tokens=rows, bytes=rows * self.row_bytes[variant], variant=variant, messages=max(1, rows))
        dispatch = variant == "dispatch"
        read = names.send(a, chunk) if dispatch else names.result(a, b, chunk)
        written = names.recv(b, a, chunk) if dispatch else names.back(b, a, chunk)
        return self.layer.add(work, names.put(a, b), [sent], a, chunk, b, reads=[read], writes=[written])

    def receive(self, variant: str, chunk: int, arrived: Sequence[Iterable[int]]) -> list[int]:
        return [self._half(f"{variant}-recv", r, chunk, arrived[r]) for r in self.layer.ranks]

    def receive_all(self, variant: str, chunk: int, arrived: Sequence[Iterable[int]]) -> list[list[int]]:
        return [[number] for number in self.receive(variant, chunk, arrived)]

    def _half(self, half: str, rank: int, chunk: int, deps: Iterable[int]) -> int:
        """Half of a dispatch or combine: a kernel that the host has enqueued."""
        stage = half.partition("-")[0]
        launched = self.layer.launch(stage, getattr(self.layer.launches, stage), rank, chunk)
        return self.layer.add(Work("enter", variant=half), names.gpu(rank), [*deps, *launched], rank, chunk)
