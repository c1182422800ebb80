"""Chunked: a rank's tokens in parts, so that the all-to-all of one runs beside the experts of another.

FasterMoE (PPoPP '22, smart scheduling) and Tutel (arXiv 2206.03382, 3.2: adaptive pipelining). The communication
stream dispatches all parts in turn, then combines them as they are computed.
"""

from __future__ import annotations

from typing import ClassVar

from sim.schedulers.ep.kernels import Kernels, Layer


class Chunked(Kernels):
    """Launches are counted for each chunk, the gate's once a layer."""

    default_chunks: ClassVar[int] = 2

    def add_layer(self, layer: Layer) -> None:
        gated = layer.gate()
        permuted = [layer.permute(c, gated) for c in range(layer.chunks)]
        stream: list[int] = []  # the communication stream runs one collective after another
        arrived = []
        for c in range(layer.chunks):
            arrived.append(self._collective(layer, "dispatch", self.launches.dispatch, c, permuted[c], stream))
            stream = [arrived[c]]
        computed = [
            [layer.experts(r, c, [arrived[c], *layer.launch("experts", self.launches.experts, r, c)]) for r in layer.ranks]
            for c in range(layer.chunks)
        ]
        for c in range(layer.chunks):
            stream = [self._collective(layer, "combine", self.launches.combine, c, computed[c], stream)]
            layer.unpermute(c, [stream] * len(layer.ranks))

    @staticmethod
    def _collective(layer: Layer, variant: str, launches: int, chunk: int, made: list[int], stream: list[int]) -> int:
        ready = [[made[r], *stream, *layer.launch(variant, launches, r, chunk)] for r in layer.ranks]
        return layer.all_to_all(variant, chunk, ready)
