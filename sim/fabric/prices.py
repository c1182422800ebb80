"""What a put costs: its bytes on every link crossed, its messages, the SMs that move it."""

from __future__ import annotations

from sim.demands import Demand
from sim.machines.parts import Lane, OpRate
from sim.machines.schema import Machine
from sim.tasks import Work

SM_WEIGHT = 1024.0
"""A communication kernel holds its SMs from its start; a product that runs beside it gets the others."""


def put_price(machine: Machine, lane: Lane, work: Work, rate: OpRate) -> tuple[float, list[Demand]]:
    """Latency in s and demands of a put.

    A byte occupies each link for 1 / bytes_efficiency of its time at the link's rate: what a protocol does
    not reach, others cannot use either, so several puts of one library share what it reaches. A memory on the
    path sees bytes_scale bytes a byte. `rate.sms` SMs are busy while a put runs at its solo rate, and as much
    less as it runs slower: all puts of a full link together keep them busy.
    """
    links, demands = [], []
    for name in lane.path:
        resource = machine.resources[name]
        if resource.kind == "messages":
            demands.append((name, float(max(1, work.messages)), resource.capacity, 1.0))
        elif resource.kind == "link":
            cap = min(resource.capacity, (rate.bytes_per_s or resource.capacity) / rate.bytes_efficiency)
            links.append((name, work.bytes / rate.bytes_efficiency, cap, 1.0))
        else:
            demands.append((name, work.bytes * rate.bytes_scale, resource.capacity, 1.0))
    demands = [*links, *demands]
    if rate.sms and lane.cores is not None:
        solo_s = max(amount / cap for _, amount, cap, _ in demands)
        demands.append((lane.cores, rate.sms * solo_s, rate.sms, SM_WEIGHT))
    return rate.latency_s + lane.latency_s, demands
