"""FastDecode*: CPU attention two micro-batches ahead, weights as one block."""

from __future__ import annotations

from sim.schedulers.base import Scheduler
from sim.schedulers.passes import Pass
from sim.schedulers.two_ahead import two_ahead


class FastDecode(Scheduler):
    """S2 of MoE-Lightning, Fig. 6 (FastDecode, arXiv 2403.11421, itself offloads no weights): the
    pipeline of CGOPipe, but the next layer's weights are a single transfer behind the layer's last
    hidden states, and the next layer's first ones queue behind it."""

    lanes = ("gpu", "cpu", "h2d", "d2h")
    attention = ("cpu",)

    def decode(self, p: Pass) -> None:
        def whole_layer(i: int, k: int) -> None:
            if k == p.last:
                p.weights.layer_to_gpu(i + 1)

        two_ahead(p, behind_load=whole_layer)
