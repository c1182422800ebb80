"""Overlapped: puts with signals. A rank computes the rows of each peer when they are there; nobody waits for everybody.

The order is that of kernels which wait for signals on the device (Flux, arXiv 2406.06858; COMET, arXiv 2502.19811, 3.2: a
rank's own rows first, then those of its peers in turn): A sends to A + 1, A + 2, ..., so B hears from B - 1, B - 2, ...
"""

from __future__ import annotations

from sim.errors import UserError
from sim.models.spec import ModelSpec
from sim.schedulers.ep.kernels import Kernels, Launches, Layer
from sim.schedulers.policy import Policy


class Overlapped(Kernels):
    """window: dispatch puts of a rank that are under way at once. Combine puts leave as soon as their rows are computed."""

    def __init__(
        self, model: ModelSpec, policy: Policy, *, seed: int = 0, ranks: int = 8, layers: int = 1, launches: Launches | None = None,
        window: int = 2,
    ) -> None:  # fmt: skip
        super().__init__(model, policy, seed=seed, ranks=ranks, layers=layers, launches=launches)
        if window < 1:
            raise UserError(f"window: is {window}; 1 or more is needed")
        self.window = window

    def add_layer(self, layer: Layer) -> None:
        permuted = layer.permute(0, layer.gate())
        arrived = [self._dispatch(layer, a, permuted[a]) for a in layer.ranks]
        returned: list[list[int]] = [[] for _ in layer.ranks]
        for turn in layer.ranks:
            for r in layer.ranks:
                peer = (r - turn) % len(layer.ranks)
                ready = permuted[r] if peer == r else arrived[peer][turn - 1]
                done = layer.experts(r, 0, [ready, *layer.launch("experts", self.launches.experts, r)], peer)
                if peer == r:
                    returned[r].append(done)
                else:
                    returned[peer].append(layer.put("combine", r, peer, 0, [done, *layer.launch("combine", self.launches.combine, r)]))
        layer.unpermute(0, returned)

    def _dispatch(self, layer: Layer, source: int, permuted: int) -> list[int]:
        """The put to the next rank, to the one after it, and so on."""
        puts: list[int] = []
        for turn in range(1, len(layer.ranks)):
            before = puts[turn - 1 - self.window : turn - self.window] if turn > self.window else []
            deps = [permuted, *before, *layer.launch("dispatch", self.launches.dispatch, source)]
            puts.append(layer.put("dispatch", source, (source + turn) % len(layer.ranks), 0, deps))
        return puts
