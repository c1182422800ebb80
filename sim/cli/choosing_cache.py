"""`cache --auto`: the expert cache for a machine and a trace, found by simulating, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.cli import compiling, output
from sim.errors import UserError

if TYPE_CHECKING:
    from sim.residency.choose import Grid
    from sim.residency.room import Room
    from sim.residency.study import Study


def choose(study: Study, grid: Grid, governed: bool, as_json: bool) -> None:
    """Search, and print what was found and why."""
    from sim.residency import advice
    from sim.residency.choose import choose as search
    from sim.residency.room import room

    if study.machine is None:
        raise UserError("--auto: chooses for a machine; give --machine")
    if study.limit is None:
        study.limit = sum(1 for _ in study.feed.steps(study.batch))
    fitting = room(study.model, study.machine, study.feed, study.batch, 2 * study.model.top_k)
    base = _base(study, fitting, governed)
    with output.steps("choosing an expert cache") as tell, compiling.told():
        found = search(study, base, grid, tell)
    b = found.best.caching
    about: dict[str, Any] = {
        "model": study.model.name, "machine": study.machine.name, "batch": study.batch, "steps": study.limit, "clock": "simulated",
        "host": b.host, **advice.as_data(found, fitting),
    }  # fmt: skip
    if as_json:
        output.print_json(about)
        return
    print(f"{study.model.name} on {study.machine.name}, batch {study.batch}, {study.limit:,} decode steps simulated")
    for line in about["explanation"]:
        print(f"  {line}")
    if not b.whole:
        print(f"  Try: python -m exec run ... --evict {b.evict} --admit {b.admit} --prefetch {b.prefetch} --work {b.work}")


def _base(study: Study, fitting: Room, governed: bool) -> Any:
    """The cache with the most experts that fit, from the disk where the host's memory does not hold all."""
    from sim.residency.study import check
    from sim.schedulers.caching import Caching

    host = None if fitting.all_in_host else fitting.host
    base = Caching(max(1, fitting.fits), host=host, governed=governed)
    assert study.machine is not None
    if host is not None and host <= study.model.experts:
        raise UserError(f"--machine {study.machine.name}: its host memory holds {host} experts; more than one layer's are needed")
    check(study.model, study.machine, study.feed, base, study.batch)
    return base
