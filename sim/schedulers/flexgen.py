"""FlexGen: attention on the GPU, the next micro-batch's KV cache on its way meanwhile."""

from __future__ import annotations

from sim import buffers
from sim.schedulers.base import Scheduler
from sim.schedulers.passes import KV_STAGE, Pass

STAGES = 2
POOLS = {KV_STAGE: STAGES}


def decode(p: Pass) -> None:
    """S4: GPU pre_attn, attention, post_attn of micro-batch k; H2D: the next layer whole at k = 0
    (FlexGen issues load_weight(j + 1) there), and always the cache of the next micro-batch."""
    turns = [(i, r) for i in p.layers for r in p.rows]
    staged = p.kv_to_gpu(0, p.rows[0], 0)
    for t, (i, r) in enumerate(turns):
        if r is p.rows[0]:
            p.weights.layer_to_gpu(i + 1)
        here = staged
        if t + 1 < len(turns):
            staged = p.kv_to_gpu(*turns[t + 1], (t + 1) % STAGES)
        p.begin(i, r)
        p.attn_gpu(i, r, buffers.kv_stage(t % STAGES), releases=(here,))
        p.kv_to_cpu(i, r)
        p.finish(i, r)


class FlexGen(Scheduler):
    """S4 of MoE-Lightning, Fig. 6; FlexGen (arXiv 2303.06865), Algorithm 1, with the released code's
    order: load_weight(j + 1), load_cache(k + 1), compute(k), store_cache(k)."""

    lanes = ("gpu", "h2d", "d2h")

    def own_pools(self) -> dict[str, int]:
        return {**super().own_pools(), **POOLS}

    def decode(self, p: Pass) -> None:
        decode(p)
