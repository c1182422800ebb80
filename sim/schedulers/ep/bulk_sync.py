"""Bulk-synchronous expert parallelism: every stage of the layer ends everywhere before the next begins.

Megatron-LM's all-to-all dispatcher: gate, permute, all-to-all, grouped GEMM, all-to-all, unpermute, without overlap
(COMET, arXiv 2502.19811, 5.3: "no overlapping"). Launches a layer, as counted by FlashDMoE (arXiv 2506.04667, Table 1,
32 experts a GPU): 85 with CUTLASS grouped GEMMs, 261 with Transformer Engine, 432 with DeepEP, 550 in DeepSpeed-MoE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from sim.schedulers.ep.kernels import Kernels, Launches, Layer

VARIANTS: Mapping[str, int] = {"cutlass": 85, "te": 261, "deepep": 432, "deepspeed": 550}
"""Launches a layer, FlashDMoE Table 1."""


class BulkSync(Kernels):
    """waits_for_counts: the host reads the rows of each pair before it launches the all-to-all, as its arguments (Megatron-LM's
    dispatcher copies them from the GPU); so what it launches later cannot be queued while the gate runs."""

    default_launches: ClassVar[Launches] = Launches.of(VARIANTS["cutlass"])
    waits_for_counts: ClassVar[bool] = True

    def add_layer(self, layer: Layer) -> None:
        gated = layer.gate()
        permuted = layer.permute(0, gated)
        ready = [
            [permuted[r], *layer.launch("dispatch", self.launches.dispatch, r, after=[gated[r]] if self.waits_for_counts else ())]
            for r in layer.ranks
        ]
        arrived = layer.all_to_all("dispatch", 0, ready)
        computed = [layer.experts(r, 0, [arrived, *layer.launch("experts", self.launches.experts, r)]) for r in layer.ranks]
        ready = [[computed[r], *layer.launch("combine", self.launches.combine, r)] for r in layer.ranks]
        returned = layer.all_to_all("combine", 0, ready)
        layer.unpermute(0, [[returned]] * len(layer.ranks))


class GraphReplayed(BulkSync):
    """The same kernels captured in one CUDA graph: one launch a layer, sizes known on the device only."""

    default_launches: ClassVar[Launches] = Launches(1, 0, 0, 0, 0, 0)
    waits_for_counts: ClassVar[bool] = False
