"""DeepSpeed ZeRO-Inference: layers streamed, everything else on the GPU."""

from __future__ import annotations

from sim import buffers
from sim.schedulers.base import Scheduler
from sim.schedulers.passes import Pass, Rows
from sim.schedulers.prefill import attend_prompt, layer_by_layer


def attend(p: Pass, i: int, r: Rows) -> None:
    """Attention to the cache that stays on the GPU."""
    p.attn_gpu(i, r, buffers.kv_gpu(i, r.cache))


class DeepSpeed(Scheduler):
    """ZeRO-Inference as MoE-Lightning's and FlexGen's papers run it (FlexGen section 6.1: "row by
    row", KV and activations on the GPU only): the whole batch goes through a layer, one micro-batch
    after the other, while the next layer's weights come in one copy from pinned memory. Dense weights stay on the GPU
    here (3 % of Mixtral 8x7B); ZeRO-3 streams them too. Hugging Face's layers take one expert after the other."""

    lanes = ("gpu", "h2d")
    kv = "gpu"
    layer_copy = "pinned"
    experts_at_once = False

    def own_pools(self) -> dict[str, int]:
        return {}

    def prefill(self, p: Pass) -> None:
        layer_by_layer(p, attend_prompt)

    def decode(self, p: Pass) -> None:
        layer_by_layer(p, attend)
