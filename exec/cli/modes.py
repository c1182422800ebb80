"""`run`: which of its ways is asked for, and which options go with each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import typer

from exec import devices
from exec.devices import DeviceName

Given = dict[str, Any]
"""Options by name."""


class Mode(NamedTuple):
    """asked: as messages name it. options: what goes with it, beside what goes with all. start: given the ranks (0: none) and
    those options."""

    asked: str
    options: str
    start: Callable[[int, Given], None]


def run(given: Given, stated: Callable[[str], bool]) -> None:
    """given: every option of the command; stated: whether an option stands on the command line. Raises BadParameter."""
    from exec.cli import clustering

    place = clustering.place(given["ranks"])
    if place is not None and place[0] > 0:
        clustering.serve_as_rank(*place)
    mode = _mode(given, place is not None)
    own = f"model gen batch seed timeline json {mode.options}".split()
    for name in given:
        if stated(name) and name not in (*own, "ranks", "device"):
            raise typer.BadParameter(f"--{name.replace('_', '-')}: does not go with {mode.asked}")
    if given["device"] is DeviceName.cuda and "device" not in own:
        raise typer.BadParameter(f"--device cuda: does not go with {mode.asked}")
    chosen = {"as_json" if name == "json" else name: given[name] for name in own}
    mode.start(place[1] if place is not None else 0, chosen)


def _mode(given: Mapping[str, Any], ranks: bool) -> Mode:
    if ranks:
        return PLACED if given["placement"] is not None else ON_RANKS
    return FROM_DISK if given["ram_budget"] is not None or given["device_budget"] is not None else PLAIN


NEEDED = {
    "machine": "a profile of this computer, which `python -m exec calibrate` makes",
    "workload": "what is to be served; `python -m sim list workloads` has some",
}


def _plain(_: int, given: Given) -> None:
    from exec.cli import running

    devices.check(given["device"])  # ahead of what only such a device can make, its profile
    for name, what in NEEDED.items():
        if given[name] is None:
            raise typer.BadParameter(f"missing option --{name}: {what}")
    running.run(**given)


def _from_disk(_: int, given: Given) -> None:
    from exec.cli import caching

    if given["ram_budget"] is None or given["device_budget"] is None:
        raise typer.BadParameter("--ram-budget and --device-budget: both are needed")
    caching.run(**given)


def _on_ranks(ranks: int, given: Given) -> None:
    from exec.cli import clustering

    if given.pop("on_rank_loss") == "recover":
        raise typer.BadParameter("--on-rank-loss recover: needs --placement, whose scheduler can go on without a rank")
    clustering.run(ranks, **given)


def _placed(ranks: int, given: Given) -> None:
    from exec.cli import placing

    recover, every = given.pop("on_rank_loss") == "recover", given.pop("rebalance_every")
    placing.run(ranks, **given, recover=recover, every=every)


PLAIN = Mode(
    "a run without --ranks or --ram-budget",
    "machine workload scheduler microbatch padded policy trace record_routing log device graphs", _plain,
)  # fmt: skip
FROM_DISK = Mode(
    "--ram-budget, which runs the scheduler expert-cache on --device cpu",
    "machine workload ram_budget device_budget evict admit prefetch work governed auto trace record_routing log", _from_disk,
)  # fmt: skip
ON_RANKS = Mode("--ranks", "machine scheduler workload tokens layers skew chunks check on_rank_loss device", _on_ranks)
PLACED = Mode(
    "--placement", "placement machine trace skew shift requests spares rebalance_every hysteresis on_rank_loss kill check", _placed
)
