"""FlexGen(c): attention on the CPU with nothing overlapped."""

from __future__ import annotations

from sim.schedulers.base import Scheduler
from sim.schedulers.passes import Pass, Rows
from sim.schedulers.prefill import layer_by_layer


def attend(p: Pass, i: int, r: Rows) -> None:
    """To the host, CPU attention, and back."""
    p.offload_qkv(i, r)
    p.attn_cpu(i, r)
    p.load_hidden(i, r)


class FlexGenC(Scheduler):
    """S3 of MoE-Lightning, Fig. 6 ("least optimized"): pre_attn, D1, CPU attention, D2, post_attn of
    one micro-batch after the other, the next layer's weights whole. In FlexGen's code the host waits
    for the CPU attention, so no GPU work of another micro-batch runs beside it."""

    lanes = ("gpu", "cpu", "h2d", "d2h")
    attention = ("cpu",)

    def decode(self, p: Pass) -> None:
        layer_by_layer(p, attend)
