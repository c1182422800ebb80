"""FlexGen(c): FlexGen with attention on the CPU, and nothing overlapped with it."""

from __future__ import annotations

from sim.schedulers.base import Scheduler
from sim.schedulers.passes import Pass
from sim.schedulers.weights import TURN


class FlexGenC(Scheduler):
    """S3 of MoE-Lightning, Fig. 6 ("least optimized"), as FlexGen's port to MoE models runs it: a layer
    is an attention pass over all micro-batches (pre_attn, D1, CPU attention, D2, one after the other,
    the host waiting for each), then a pass of the experts. The experts' weights come with the first
    micro-batch of attention. The CPU attention copies K and V into an fp32 workspace and expands them
    to all query heads (mha_gen; variant "expanded")."""

    lanes = ("gpu", "cpu", "h2d", "d2h")
    attention = ("cpu",)
    layer_copy = "host"
    ahead = False

    def decode(self, p: Pass) -> None:
        last = -1
        for i in p.layers:
            if i > 0:
                p.weights.layer_to_gpu(i, after=(last,))
            loaded: tuple[int, ...] = ()
            for r in p.rows:
                p.begin(i, r, after=loaded)
                p.offload_qkv(i, r)
                p.attn_cpu(i, r, variant="expanded")
                loaded = (p.load_hidden(i, r),)
            for r in p.rows:
                last = p.finish(i, r)
        p.launch.keep(TURN, last)
