"""`cache`: expert caches on a routing trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sim.cli import choosing_cache as choosing
from sim.cli import compiling, output
from sim.errors import UserError, unknown

if TYPE_CHECKING:
    from sim.models.spec import ModelSpec
    from sim.residency.choose import Grid
    from sim.residency.feed import Feed
    from sim.residency.study import Study
    from sim.schedulers.caching import Caching

PICTURES = (".svg", ".png")
STEPS = 1000
"""Decode steps on the timeline, unless said otherwise."""
AUTO_STEPS = 256
"""Of the last rung of a choice."""


def cache(
    model: str, machine: str | None, trace: Path, *, auto: bool, capacity: str | None, evict: str | None, admit: str | None,
    prefetch: str | None, work: str | None, batch: int, whole: bool, host: int | None, governed: bool, steps: int | None,
    sequences: int | None, skip: int, next_gate: Path | None, plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Run every combination and print them, or with `auto` choose among them; slow ones tell on stderr how far they are."""
    from sim import models

    spec = models.load(model)
    if auto:
        _check_alone({"--capacity": capacity, "--global": whole, "--host": host, "--plot": plot})
        study, _ = _study(spec, machine, trace, batch, AUTO_STEPS if steps is None else steps, (skip, sequences), next_gate)
        grid = _grid(next_gate is not None, evict=evict, admit=admit, prefetch=prefetch, work=work)
        choosing.choose(study, grid, governed, as_json)
        return
    if capacity is None:
        raise UserError("--capacity: missing; experts of each layer that stay, separated by commas, or --auto")
    names = evict or "lru,lfu,lfru", admit or "always", prefetch or "none", work or "gpu"
    output.check_writable("--plot", plot, PICTURES)
    wanted = list(_combinations(spec, capacity, *names, whole, host, governed))
    with output.steps("simulating expert caches") as tell, compiling.told():
        study, skipped = _study(spec, machine, trace, batch, steps, (skip, sequences), next_gate)
        _check(study, wanted, trace, next_gate)
        found = _simulated(study, wanted, trace, tell)
    if skipped:
        output.note(f"the first {study.limit:,} decode steps of the trace's {skipped:,}; --steps 0 takes them all")
    if plot is not None:
        from sim.residency.plot import write_plot

        write_plot(plot, found)
    if as_json:
        output.print_json(found)
    else:
        _print(found)


def _check_alone(given: Mapping[str, object]) -> None:
    for flag in (flag for flag, value in given.items() if value):
        raise UserError(f"{flag}: does not go with --auto, which finds it or draws nothing")


def _simulated(study: Study, wanted: Sequence[Caching], trace: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """A row of each combination, and what they have in common."""
    rows = []
    for i, caching in enumerate(wanted):
        what = f"{caching.capacity} of {study.model.experts}, {caching.evict}, {caching.admit}, {caching.prefetch}, {caching.work}"
        tell(f"{i + 1} of {len(wanted)}: {what}")
        rows.append(study.row(caching))
    return {
        "model": study.model.name, "machine": study.machine.name if study.machine else None, "trace": str(trace), "batch": study.batch,
        "tokens": study.tokens, "sequences": len(study.feed.sequences), "experts": study.model.experts, "top_k": study.model.top_k,
        "staging_slots": wanted[0].slots_beyond(study.model), "clock": "simulated", "rows": rows,
    }  # fmt: skip


def _study(
    spec: ModelSpec, machine: str | None, trace: Path, batch: int, steps: int | None, part: tuple[int, int | None],
    next_gate: Path | None,
) -> tuple[Study, int]:  # fmt: skip
    """The study, and the steps of the whole trace where not all are taken."""
    from sim import machines
    from sim.residency import feed as feeds
    from sim.residency.study import Study

    box = None if machine is None else machines.load(machine)
    feed, gates = _load(feeds.load(trace), spec, trace, part), None
    if next_gate is not None:
        gates = _load(feeds.load(next_gate), spec, next_gate, part)
        if [len(s) for s in gates.sequences] != [len(s) for s in feed.sequences]:
            raise UserError(f"--next-gate {next_gate}: its sequences are not those of --trace {trace}; record both in one run")
    limit = (STEPS if box is not None else 0) if steps is None else steps
    total = sum(1 for _ in feed.steps(batch)) if limit else 0
    return Study(spec, box, feed, batch=batch, limit=limit or None, gates=gates), total if limit and total > limit else 0


def _load(feed: Feed, spec: ModelSpec, path: Path, part: tuple[int, int | None]) -> Feed:
    """part: sequences to leave out at the front, and how many to take of the rest."""
    feed.check(spec, path)
    skip, count = part
    if skip >= len(feed.sequences):
        most = len(feed.sequences) - 1
        raise UserError(f"--skip: is {skip}; {path} has {most + 1} sequences, so at most {most} can be left out")
    rest = feed.take(range(skip, len(feed.sequences)))
    return rest if count is None else rest.spread(count)


def _combinations(
    model: ModelSpec, capacity: str, evict: str, admit: str, prefetch: str, work: str, whole: bool, host: int | None, governed: bool
) -> Iterator[Caching]:
    from sim.residency import policies
    from sim.residency.admission import ADMISSIONS
    from sim.residency.placement import WORK
    from sim.residency.prefetch import PREDICTORS
    from sim.schedulers.caching import Caching

    sizes = [_capacity(text, model.experts) for text in _parts("--capacity", capacity)]
    if host is not None and host <= model.experts:
        raise UserError(f"--host: is {host}; more than one layer's {model.experts} experts are needed")
    evicts, admits = _names("--evict", evict, policies.NAMES), _names("--admit", admit, ADMISSIONS)
    prefetches, works = _names("--prefetch", prefetch, PREDICTORS), _names("--work", work, WORK)
    for size, (e, a, p, w) in product(sizes, product(evicts, admits, prefetches, works)):
        admission = "contest" if e == "static" else a  # its contents are what is popular, whatever was fetched
        yield Caching(size, evict=e, admit=admission, prefetch=p, work=cast("Any", w), whole=whole, host=host, governed=governed)


def _grid(gates: bool, **names: str | None) -> Grid:
    """What to choose from: what was named, else everything that knows no future."""
    from sim.residency import policies
    from sim.residency.admission import ADMISSIONS
    from sim.residency.choose import Grid
    from sim.residency.placement import WORK
    from sim.residency.prefetch import PREDICTORS

    foretold = {"prefetch": () if gates else ("next-gate",)}
    known: dict[str, Sequence[str]] = {
        "evict": tuple(policies.ONLINE), "admit": tuple(ADMISSIONS), "prefetch": tuple(PREDICTORS), "work": WORK,
    }  # fmt: skip
    chosen: dict[str, Any] = {
        key: [n for n in known[key] if n not in foretold.get(key, ())] if text is None else _names(f"--{key}", text, known[key])
        for key, text in names.items()
    }
    return Grid(**chosen)


def _parts(flag: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{flag}: is empty; values separated by commas are needed")
    return list(dict.fromkeys(parts))


def _names(flag: str, text: str, known: Sequence[str] | dict[str, Any]) -> list[str]:
    parts = _parts(flag, text)
    for part in parts:
        if part not in known:
            raise unknown(flag, part, known)
    return parts


def _capacity(text: str, experts: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= experts:
        raise UserError(f"--capacity: is {text!r}; whole numbers from 1 to {experts}, the experts of a layer, are needed")
    return int(text)


def _check(study: Study, wanted: Sequence[Caching], trace: Path, next_gate: Path | None) -> None:
    """Refuse what could not be simulated, before anything is."""
    from sim.residency.prefetch import refuse_without_gate
    from sim.residency.study import check

    for caching in wanted:
        if caching.prefetch == "next-gate":
            refuse_without_gate(next_gate is not None, f"--trace {trace}")
        if study.machine is None and (caching.prefetch != "none" or caching.work != "gpu" or caching.host is not None):
            raise UserError("--prefetch, --work and --host: need a timeline; give --machine")
        if study.machine is not None:
            check(study.model, study.machine, study.feed, caching, study.batch)


def _print(found: dict[str, Any]) -> None:
    where = f" on {found['machine']}" if found["machine"] else ""
    title = (
        f"{found['model']}{where}: {found['tokens']:,} tokens of {found['sequences']} sequences, batch {found['batch']}; "
        f"experts of {found['experts']} a layer, top-{found['top_k']}, {found['staging_slots']} staging slots"
    )
    numbers = ("hit rate", "Belady", "MB/token", "Belady's", "tokens/s", "prefetch useful", "set/capacity")
    rows = [
        (r["capacity"], r["evict"], r["admit"], r["prefetch"], r["work"], f"{r['hit_rate']:.3f}", f"{r['belady_hit_rate']:.3f}",
         f"{r['bytes_per_token'] / 1e6:.1f}", f"{r['belady_bytes_per_token'] / 1e6:.1f}", _number(r["tokens_per_s"]),
         _number(r["prefetch_useful"]), f"{r['working_set_over_capacity']:.2f}")
        for r in found["rows"]
    ]  # fmt: skip
    output.print_table(title, ("capacity", "evict", "admit", "prefetch", "work", *numbers), rows, numeric=("capacity", *numbers))


def _number(value: float | None) -> str:
    from sim.residency.advice import rate

    return "" if value is None else rate(value)
