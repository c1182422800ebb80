"""Links: rows from device to device, each ordered pair of ranks having a process group of its own.

Over NCCL a group is a communicator with a stream of its own, in which operations run one after another, and a send holds its
stream until the other side receives. In one group for both directions two ranks that each send first would
wait for each other for ever; so what goes from A to B shares its stream with nothing else, and as its headers arrive in
order over gloo, both sides enqueue the same operations in the same order. Connections are made when a pair is
first used, which holds both hosts: all pairs are used once, in one order, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import permutations
from typing import Any

import torch
import torch.distributed as dist

from exec.cluster.device import CUDA, RankDevice
from exec.cluster.mesh import PeerLost, first_line
from sim.errors import UserError

MOST_RANKS = 16
"""torch hands out 32 streams of a kind in turn; with more ranks than this, two groups would share one."""

TRANSFER_S = 60.0
"""A transfer that takes longer hangs: torch's watchdog then ends the process."""


OF_THE_DEVICE = "CUDA error", "CUDA out of memory", "ncclUnhandledCudaError", "ncclInternalError", "ncclInvalidArgument", "ncclInvalidUsage"
"""What errors of this rank's own device, or of how it is used, have in their text. Others (ncclRemoteError, ncclSystemError, all of
gloo's) come of a peer that is gone, or of the way to it."""


def of_the_device(error: RuntimeError) -> bool:
    return any(name in str(error) for name in OF_THE_DEVICE)


class Links:
    """Groups of all pairs; every rank has to make its own at the same time. `send` and `receive` return when the device is
    done, the latter when that was on this computer's clock (ns). They raise PeerLost, and what the own device reports as it is.
    Raises UserError for too many ranks."""

    def __init__(self, rank: int, ranks: int, kind: str, device: RankDevice) -> None:
        if ranks > MOST_RANKS:
            raise UserError(f"--ranks: is {ranks}; with a device of their own at most {MOST_RANKS} can be connected")
        self.rank, self._device = rank, device
        backend = "nccl" if kind == CUDA else "gloo"
        pairs = list(permutations(range(ranks), 2))
        self._groups: dict[tuple[int, int], Any] = {
            pair: dist.new_group(list(pair), timeout=timedelta(seconds=TRANSFER_S), backend=backend) for pair in pairs
        }  # fmt: skip
        one = device.take("first", (1, 1))
        for a, b in pairs:
            if a == rank:
                self.send(b, one)
            elif b == rank:
                self.receive(a, one)

    def send(self, peer: int, rows: torch.Tensor) -> None:
        self._device.do(f"to.{peer}", self._transfer(dist.isend, rows, peer, self._groups[self.rank, peer]))

    def receive(self, peer: int, rows: torch.Tensor) -> int:
        return self._device.do(f"from.{peer}", self._transfer(dist.irecv, rows, peer, self._groups[peer, self.rank]))[1]

    def close(self) -> None:
        """Give the groups back; nothing is on its way any more."""
        for pair, group in self._groups.items():
            if self.rank in pair:
                dist.destroy_process_group(group)

    @staticmethod
    def _transfer(operation: Callable[..., Any], rows: torch.Tensor, peer: int, group: Any) -> Callable[[], None]:
        def run() -> None:
            try:
                operation(rows, peer, group=group).wait()  # over NCCL, the stream that is current waits, not the host
            except RuntimeError as error:
                if of_the_device(error):
                    raise
                raise PeerLost(peer, first_line(error)) from error

        return run
