"""Resident: all weights and the KV cache on the GPU."""

from __future__ import annotations

from sim.schedulers.base import Scheduler
from sim.schedulers.deepspeed import attend
from sim.schedulers.passes import Pass
from sim.schedulers.prefill import Attention, attend_prompt


class Resident(Scheduler):
    """No offloading, the upper end of every comparison: each micro-batch goes through all layers at
    once, as an ordinary serving engine's step does, so that one micro-batch's activations live at a time."""

    lanes = ("gpu",)
    streams = False
    kv = "gpu"

    def own_pools(self) -> dict[str, int]:
        return {}

    def prefill(self, p: Pass) -> None:
        _through(p, attend_prompt)

    def decode(self, p: Pass) -> None:
        _through(p, attend)


def _through(p: Pass, attend: Attention) -> None:
    for r in p.rows:
        for i in p.layers:
            p.begin(i, r)
            attend(p, i, r)
            p.finish(i, r)
