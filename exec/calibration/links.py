"""The same computer behind other links."""

from __future__ import annotations

from sim.machines.schema import Machine, Resource


def relink(machine: Machine, rates: dict[str, float]) -> Machine:
    """The same computer behind other links: bytes/s by lane, 0 for native copies."""
    lanes, resources = [], dict(machine.resources)
    for lane in machine.lanes:
        if lane.name not in rates:
            lanes.append(lane)
            continue
        rate = rates[lane.name] or None
        link = f"link.{lane.name}"
        others = tuple(p for p in lane.path if p != link)
        resources[link] = Resource(
            kind="link", capacity=rate or machine.resources["memory"].capacity,
            source="chosen for this run" if rate else "native: the cores that copy and the memory bound it",
        )  # fmt: skip
        lanes.append(lane.model_copy(update={"paced_bytes_per_s": rate, "path": (link, *others)}))
    paced = any(lane.paced_bytes_per_s for lane in lanes)
    return machine.model_copy(update={"lanes": tuple(lanes), "resources": resources, "clock": "emulated" if paced else "measured"})
