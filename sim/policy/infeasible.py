"""What to say where no policy fits: which memory is short, by how many bytes, and the nearest change that helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sim.costs import CostModel
from sim.errors import UserError
from sim.job import check_positions
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.policy.fit import Fit
from sim.policy.space import Point, Space
from sim.policy.traffic import Traffic
from sim.schedulers.memory import Peak
from sim.workloads.schema import Workload


def check(model: ModelSpec, machine: Machine, workload: Workload, space: Space) -> None:
    """Raises UserError for what no batch size can mend."""
    check_positions(model, workload)
    if not space.orders:
        raise UserError(f"machine {machine.name}: has lanes {', '.join(machine.lane)}; every scheduler needs one named 'gpu' at least")


def why(model: ModelSpec, machine: Machine, workload: Workload, space: Space) -> UserError:
    """The error for a space of which no point fits, told by the smallest point that lacks least."""
    costs = CostModel(machine, model)

    def fit(load: Workload) -> Fit:
        return Fit(costs, Traffic(load, 1))

    here = fit(workload)
    least = min(_smallest(space), key=lambda p: (sum(here.short_of(p).values()), space.orders.index(p.order), p.static_experts))
    short, needed = here.short_of(least), here.peak(least)
    parts = "; ".join(_one(name, missing, needed, machine) for name, missing in short.items())
    where = f"{least.order.scheduler}, batch {least.batch}, static_experts {least.static_experts}"
    changes = [_gen(workload, lambda load: fit(load).exactly(least)), _memories(short, machine)]
    return UserError(
        f"policy: {model.name} does not fit {machine.name} with {workload.longest_prompt} prompt and {workload.longest_generation} "
        f"generated tokens; the least that lacks is {where}: {parts}; nearest change: {' or '.join(c for c in changes if c)}"
    )


def _smallest(space: Space) -> list[Point]:
    """One sequence by each launch order, with each number of static experts."""
    return [Point(o, 1, 1, e, 1, space.pages) for o in space.orders for e in space.statics(o)]


def _one(name: str, missing: int, needed: Peak, machine: Machine) -> str:
    consumers = {c: b for c, b in needed.get(name, {}).items() if b}
    parts = ", ".join(f"{c} {b:,}" for c, b in consumers.items())
    budget = machine.memories[name].budget_bytes if name in machine.memories else 0
    return f"memory {name!r} lacks {missing:,} bytes of {budget + missing:,} ({parts}), usable {budget:,}"


def _gen(workload: Workload, fits: Callable[[Workload], bool]) -> str:
    """The longest generation that fits, found by bisection; "" where none does."""
    low, high = 0, workload.longest_generation
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(workload.with_generation(middle)) else (low, middle)
    return f"--gen {low}" if low and fits(workload.with_generation(low)) else ""


def _memories(short: Mapping[str, int], machine: Machine) -> str:
    """What the machine would have to have."""
    needs = []
    for name, missing in short.items():
        here = machine.memories.get(name)
        usable = here.usable if here else 1.0
        needs.append(f"memories.{name}.bytes of {-int(-((here.budget_bytes if here else 0) + missing) // usable):,}")
    return "a machine with " + " and ".join(needs)
