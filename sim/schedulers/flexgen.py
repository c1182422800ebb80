"""FlexGen: attention on the GPU, the KV cache brought to it; as it is drawn, and as it runs."""

from __future__ import annotations

from sim import buffers
from sim.schedulers.base import Scheduler
from sim.schedulers.passes import KV_STAGE, Pass
from sim.schedulers.weights import TURN

STAGES = 2
POOLS = {KV_STAGE: STAGES}


def s4(p: Pass) -> None:
    """S4 of MoE-Lightning, Fig. 6: GPU pre_attn, attention, post_attn of micro-batch k; H2D: the next
    layer whole at k = 0, and always the cache of the next micro-batch."""
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
    """FlexGen (arXiv 2303.06865), Algorithm 1, as its port to MoE models runs it (FlexGen-MoE,
    flex_moe.py, with sep_layer and without pin_weight).

    A layer is two passes over all micro-batches: attention, then the experts. The caches come during
    the first only. The experts' weights are issued with its first micro-batch, and the synchronisation
    at that micro-batch's end waits for them; nothing is copied beside the experts but the next layer's
    first cache. Copies go through a pin_memory() on the host (variant "host").
    """

    lanes = ("gpu", "h2d", "d2h")
    layer_copy = "host"
    ahead = False

    def own_pools(self) -> dict[str, int]:
        return {**super().own_pools(), **POOLS}

    def decode(self, p: Pass) -> None:
        staged, turn, latest = p.kv_to_gpu(0, p.rows[0], 0), 0, -1
        for i in p.layers:
            if i > 0:
                p.weights.layer_to_gpu(i, after=(latest,))
            for k, r in enumerate(p.rows):
                here, slot, turn = staged, turn % STAGES, turn + 1
                if k < p.last:
                    staged = p.kv_to_gpu(i, p.rows[k + 1], turn % STAGES)
                p.begin(i, r)
                latest = p.attn_gpu(i, r, buffers.kv_stage(slot), releases=(here,))
                p.kv_to_cpu(i, r)
            for k, r in enumerate(p.rows):
                if k == p.last and i + 1 < p.sizes.layers:
                    staged = p.kv_to_gpu(i + 1, p.rows[0], turn % STAGES, after=(latest,))
                latest = p.finish(i, r)
        p.launch.keep(TURN, latest)
