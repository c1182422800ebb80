"""DeviceBackend: a rank whose weights, rows and compute are on a device of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from exec.cluster.backend import Kept, RankBackend
from exec.cluster.device import COMPUTE, RankDevice
from exec.cluster.device_dense import DeviceDense
from exec.cluster.device_layers import DeviceMoE, DeviceWeights, loaded
from exec.cluster.device_mesh import DeviceMesh
from exec.cluster.engine import DeviceEngine
from exec.cluster.job import Order
from exec.cluster.links import Links
from exec.cluster.mesh import Counters, Mesh
from exec.cluster.outputs import Floats, Outputs
from exec.runtime import Interrupt, Record
from exec.weights import Weights
from sim.events import Result
from sim.plan import Plan


class DeviceBackend(RankBackend):
    """links: by which rows go to other ranks' devices. ended_ns: by task, when the device had done it (`DeviceEngine` takes it)."""

    _ahead = 0
    """Receives are posted for as many rows as a header says."""

    def __init__(self, order: Order, rank: int, device: RankDevice, links: Links, kept: Kept | None = None) -> None:
        self.device, self.links = device, links
        self.ended_ns: dict[int, int] = {}
        self._make = device.take
        device.do(COMPUTE, lambda: super(DeviceBackend, self).__init__(order, rank, kept))
        self._warm = False  # sizes of this order were not seen before

    engine = DeviceEngine

    def mesh(self, peers: Sequence[int], counters: Counters, **told: Any) -> Mesh:
        return DeviceMesh(self.rank, peers, self.rows, counters, links=self.links, most_counts=self.order.experts_per_rank, **told)

    def _loaded(self, weights: Weights) -> DeviceWeights:
        return loaded(weights, self.device)

    def _copied(self, array: Floats) -> torch.Tensor:
        return self.device.up(array)

    def _moe(self) -> DeviceMoE:
        return DeviceMoE(self.order, self.rank, self.weights, self.rows, self.store, self.device)

    def _dense(self) -> DeviceDense:
        return DeviceDense(self.order, self.rank, self.weights, self.store, self.device)

    def begin(self, plan: Plan, states: Any) -> None:
        self.device.do(COMPUTE, lambda: super(DeviceBackend, self).begin(plan, states))
        self.device.begin()

    def _warm_up(self) -> None:
        if not self._warm:
            self.device.do(COMPUTE, self.moe.warm_up)
            if self.dense:
                self.device.do(COMPUTE, self.dense.warm_up)
            self._warm = True

    def run(self, task: Record, interrupt: Interrupt) -> Result | None:
        """Ops of the compute lane on its stream; puts see to theirs, and what the host does in between takes none."""
        if not str(task.lane).startswith("gpu."):
            return super().run(task, interrupt)
        result, self.ended_ns[task.number] = self.device.do(COMPUTE, lambda: super(DeviceBackend, self).run(task, interrupt))
        return result

    def outputs(self, cpu_s: float) -> Outputs:
        found = super().outputs(cpu_s)
        hidden = None if found.hidden is None else found.hidden.cpu().numpy()
        return replace(found, hidden=hidden, clock=self.device.clock())
