"""CGOPipe: CPU attention two micro-batches ahead, weights in pages between the hidden states."""

from __future__ import annotations

from sim.schedulers import flexgen
from sim.schedulers.base import Scheduler
from sim.schedulers.passes import Pass
from sim.schedulers.two_ahead import AHEAD, two_ahead
from sim.schedulers.weights import share


class CGOPipe(Scheduler):
    """MoE-Lightning (arXiv 2411.11217), Algorithm 1; indexes as in its released code
    (fastmoe/serve/router/model_rpc.py, batch_forward_step).

    In the one H2D queue the hidden states of micro-batch k go before page k of the next layer; the
    pinned stage is two slots ahead of that. The last layer streams layer 0 for the next step. With
    attention on the GPU it falls back to FlexGen's schedule (section 4.2, A_g = 1).
    """

    lanes = ("gpu", "cpu", "h2d", "d2h", "pin")
    attention = ("cpu", "gpu")
    expert_kernel = "tiled"

    def own_pools(self) -> dict[str, int]:
        return {**super().own_pools(), **(flexgen.POOLS if self.attention_on == "gpu" else {})}

    def decode(self, p: Pass) -> None:
        if self.attention_on == "gpu":
            flexgen.s4(p)
            return
        n = len(p.rows)

        def to_gpu(i: int, k: int) -> None:
            p.weights.page_to_gpu(i + 1, share(p.sizes, k, n))

        def to_pin(i: int, k: int) -> None:
            if i < 0:
                p.weights.page_to_pin(1, share(p.sizes, k, n))
            elif k + AHEAD < n:
                p.weights.page_to_pin(i + 1, share(p.sizes, k + AHEAD, n))
            elif i + 1 < p.sizes.layers:  # beyond the last layer the next step's prologue does it
                p.weights.page_to_pin(i + 2, share(p.sizes, (k + AHEAD) % n, n))

        two_ahead(p, behind_front=to_pin, behind_load=to_gpu)
