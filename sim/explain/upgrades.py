"""Machines that are better in one respect: what could be bought, and what could be written."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from sim.machines.schema import Machine, OpRate

UNITS = {"flops": "FLOP/s", "memory": "B/s", "link": "B/s", "cores": "cores"}


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One thing made `factor` times as fast.

    name: a resource of the machine; "ops on LANE", all rates of that lane's rows of the op table; or
    "launches", the fixed latency of every op. hardware: another part; software: better kernels, copies, launches.
    before, after: the capacity in `unit`; None where it is not one number.
    """

    name: str
    kind: Literal["hardware", "software"]
    factor: float
    unit: str
    before: float | None
    after: float | None
    machine: Machine


def upgrades(machine: Machine, resources: Collection[str], lanes: Collection[str], factor: float) -> list[Upgrade]:
    """One for each resource and each lane in use, and one for latencies; resources in the machine's order."""
    found = []
    for name, r in machine.resources.items():
        if name in resources or any(machine.lane[lane].peers == name for lane in lanes):
            better = with_capacity(machine, name, factor)
            found.append(Upgrade(name, "hardware", factor, UNITS[r.kind], r.capacity, r.capacity * factor, better))
    for name in (lane.name for lane in machine.lanes if lane.name in lanes):
        found.append(Upgrade(f"ops on {name}", "software", factor, "of present rates", 1.0, factor, with_speed(machine, name, factor)))
    if any(row.latency_s for row in machine.ops):
        found.append(Upgrade("launches", "software", factor, "of present latencies", 1.0, 1 / factor, with_latency(machine, factor)))
    return found


def with_capacity(machine: Machine, resource: str, factor: float) -> Machine:
    """A resource with `factor` times its capacity; lanes that the executor paces to it are paced to the new rate."""
    old = machine.resources[resource]
    new = old.model_copy(update={"capacity": old.capacity * factor, "source": f"what if: {factor:g} times {old.source}"})
    lanes = tuple(
        lane.model_copy(update={"paced_bytes_per_s": lane.paced_bytes_per_s * factor})
        if lane.paced_bytes_per_s is not None and lane.path[:1] == (resource,) else lane
        for lane in machine.lanes
    )  # fmt: skip
    return machine.model_copy(update={"resources": {**machine.resources, resource: new}, "lanes": lanes})


def with_speed(machine: Machine, lane: str, factor: float) -> Machine:
    """All ops of a lane run at `factor` times their rates, up to what the resources give; latencies stay."""
    return machine.model_copy(update={"ops": tuple(_faster(row, factor) if row.lane == lane else row for row in machine.ops)})


def _faster(row: OpRate, factor: float) -> OpRate:
    return row.model_copy(update={
        "flops_efficiency": row.flops_efficiency * factor, "bytes_efficiency": row.bytes_efficiency * factor,
        "curve": tuple((x, y / factor) for x, y in row.curve),
    })  # fmt: skip


def with_latency(machine: Machine, factor: float) -> Machine:
    """All fixed latencies of the op table divided by `factor`."""
    return machine.model_copy(update={"ops": tuple(row.model_copy(update={"latency_s": row.latency_s / factor}) for row in machine.ops)})
