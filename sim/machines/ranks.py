"""A machine of which fewer of the equal devices work together: a smaller tensor-parallel degree."""

from __future__ import annotations

from sim.errors import UserError
from sim.machines.schema import Machine


def degrees(machine: Machine) -> tuple[int, ...]:
    """Tensor-parallel degrees that the machine can run, the largest first: what divides its ranks."""
    most = max(lane.ranks for lane in machine.lanes)
    return tuple(d for d in range(most, 0, -1) if most % d == 0)


def with_ranks(machine: Machine, degree: int) -> Machine:
    """Lanes of several ranks keep `degree` of them, with their share of FLOP/s, bandwidth and memory. Links to the host
    are shared by all ranks and stay as they are.

    Raises UserError for a degree that does not divide the ranks.
    """
    if degree not in degrees(machine):
        have = ", ".join(map(str, degrees(machine)))
        raise UserError(f"policy.tensor_parallel: is {degree}; {machine.name} can split a layer over {have}")
    share = degree / degrees(machine)[0]
    if share == 1:
        return machine
    several = [lane for lane in machine.lanes if lane.ranks > 1]
    resources, memories = dict(machine.resources), dict(machine.memories)
    for name in {r for lane in several for r in (lane.compute, lane.memory) if r is not None}:
        resources[name] = resources[name].model_copy(update={"capacity": resources[name].capacity * share})
    for name in {lane.home for lane in several if lane.home is not None}:
        memories[name] = memories[name].model_copy(update={"bytes": int(memories[name].bytes * share)})
    lanes = tuple(lane.model_copy(update={"ranks": degree}) if lane in several else lane for lane in machine.lanes)
    return machine.model_copy(update={"resources": resources, "memories": memories, "lanes": lanes})
