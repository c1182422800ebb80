"""`explain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sim.cli import choosing, compiling, options, output, running
from sim.errors import UserError

if TYPE_CHECKING:
    from sim.cli.choosing import Paper
    from sim.explain import Explanation
    from sim.explain.limits import Limit
    from sim.explain.roofline import Roofline
    from sim.job import Job
    from sim.simulate import EngineName

PICTURES = (".svg", ".png")
SHOWN = 0.001
"""Gain, and share of the critical path, below which a row is left out of the tables."""


def best_job(
    model: str, machine: str, workload: str, *, gen: int | None, objective: str, refine: int, padded: bool, seed: int, paper: Paper | None,
    cached: bool,
) -> Job:  # fmt: skip
    """The job of the policy that `sim policy` finds for the same arguments. Raises UserError where nothing fits."""
    from sim import machines, models
    from sim.job import prepare

    found, _ = choosing.ask(
        model, machine, workload, gen=gen, objective=objective, refine=refine, padded=padded, seed=seed, paper=paper, cached=cached
    )
    load = options.traffic(workload, gen, padded or found.policy.padded)
    assert found.policy.scheduler is not None, found.policy
    return prepare(models.load(model), machines.load(machine), load, found.policy.scheduler, found.policy, seed=seed)


def explain(make: Callable[[], Job], *, trace: Path | None, engine: str, plot: Path | None, timeline: Path | None, as_json: bool) -> None:
    output.check_writable("--plot", plot, PICTURES)
    output.check_writable("--timeline", timeline, options.TIMELINE_SUFFIXES)
    job = make()
    routing = None if trace is None else running.routing_of(trace, job)
    from sim import explain as explaining

    with output.progress("explaining") as tell, compiling.told():
        found = explaining.explain(job, engine=cast("EngineName", engine), routing=routing, tell=tell)
    if plot is not None:
        if found.roofline is None:
            raise UserError(f"--plot: no roofline of {job.machine.name}: it takes lanes gpu, cpu and h2d, and 2 tokens to generate")
        from sim.explain.plot import write_plot

        write_plot(plot, found)
    if timeline is not None:
        running.write_timeline(found.outcome, timeline)
    if as_json:
        output.print_json(explaining.as_data(found))
    else:
        print_explanation(found)


def print_explanation(e: Explanation) -> None:
    """The sentence first, then the tables, the most useful one on top."""
    from sim.explain import sentence

    s = e.outcome.summary
    sizes = f"batch {s['policy']['batch']}, micro-batch {s['policy']['microbatch']}"
    print(f"{s['scheduler']}: {s['model']} on {s['machine']}, {s['workload']}, {sizes}: {s['tokens_per_s']:.4g} tokens/s")
    print(sentence(e))
    print(f"It takes {_seconds(e.makespan_s)}; no schedule of these tasks takes less than {_seconds(e.bounds.seconds)}:"
          f" at most {e.bounds.gap(e.makespan_s):.1%} of the time can be won by another order.\n")  # fmt: skip
    _upgrades(e)
    _lanes(e)
    _critical(e)
    _bounds(e)
    if e.roofline is not None:
        _roofline(e.roofline)


def _seconds(value: float) -> str:
    return output.seconds(value)


def _upgrades(e: Explanation) -> None:
    paying = [x for x in e.elasticities if x.gain >= SHOWN]
    rows = [
        (x.upgrade.name, x.upgrade.kind, _change(x.upgrade.before, x.upgrade.after, x.upgrade.unit), f"{x.gain:+.1%}",
         f"{x.elasticity:.2f}", _limit(x.then), "" if x.most is None else f"{x.most:+.0%}", _limit(x.most_then))
        for x in paying
    ]  # fmt: skip
    factor = e.elasticities[0].upgrade.factor if e.elasticities else 1.0
    numbers = ("throughput", "elasticity", "were it free")
    columns = (f"{factor - 1:+.0%} of", "kind", "from, to", *numbers[:2], "bottleneck then", numbers[2], "bottleneck if free")
    output.print_table("What upgrades give, each simulated again", columns, rows, numeric=numbers)
    rest = ", ".join(x.upgrade.name for x in e.elasticities if x.gain < SHOWN)
    print(f"Less than {SHOWN:.1%}: {rest}.\n" if rest else "")


def _change(before: float | None, after: float | None, unit: str) -> str:
    if before is None or after is None:
        return unit
    scale, name = next(((f, n) for f, n in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if before >= f), (1.0, ""))
    return f"{before / scale:.3g} -> {after / scale:.3g} {name}{unit}"


def _limit(x: Limit | None) -> str:
    if x is None:
        return ""
    return f"{x.resource} ({x.lane}), {x.share:.0%}" if x.lane else f"{x.resource}, {x.share:.0%}"


def _lanes(e: Explanation) -> None:
    total = e.makespan_s
    rows = [
        (name, _seconds(t.busy_s), *(f"{v / total:.1%}" for v in (t.busy_s, t.blocked_s, t.sharing_s, t.pool_s, t.order_s, t.bubble_s)))
        for name, t in e.lanes.items()
    ]  # fmt: skip
    columns = ("lane", "busy", "share", "blocked", "by sharing", "by pools", "by order", "bubble")
    output.print_table("Lanes: busy at solo speed; blocked with work at hand; bubble: nothing to do", columns, rows, numeric=columns[1:])
    print()


def _critical(e: Explanation) -> None:
    rows = [(s.op or "waiting", s.lane, f"{s.tasks:,}", _seconds(s.seconds), f"{s.share:.1%}") for s in e.by_op if s.share >= SHOWN]
    columns = ("op", "lane", "tasks", "time", "share")
    output.print_table("Critical path by op and lane", columns, rows, numeric=columns[2:])
    print()
    binding = [
        (x.resource, x.lane, _seconds(x.seconds), f"{x.share:.1%}", f"{x.reach:.0%}", _seconds(x.shared_s))
        for x in e.by_limit if x.share >= SHOWN
    ]  # fmt: skip
    head = ("bound by", "lane", "time", "share", "reach", "shared")
    output.print_table("Critical path by what binds it (reach: share of it that these ops get alone)", head, binding, numeric=head[2:])
    print()


def _bounds(e: Explanation) -> None:
    alone: Mapping[str, float] = {
        "longest chain of tasks": e.bounds.critical_path_s,
        **{f"lane {name}": v for name, v in e.bounds.lanes_s.items()},
        **{f"resource {name}": v for name, v in e.bounds.resources_s.items()},
    }  # fmt: skip
    rows = [("all combined: the bound", _seconds(e.bounds.seconds), f"{e.bounds.seconds / e.makespan_s:.1%}")]
    rows += [(name, _seconds(v), f"{v / e.makespan_s:.1%}") for name, v in sorted(alone.items(), key=lambda item: -item[1])[:4]]
    output.print_table("Lower bounds of any schedule", ("bound", "time", "of the makespan"), rows, numeric=("time", "of the makespan"))
    print()


def _roofline(r: Roofline) -> None:
    rows = [
        (op.op, *(_count(v) for v in (op.intensity_host, op.p1, op.p2)),
         "none" if op.balance_tokens is None else f"{op.balance_tokens:,.0f}", _flops(op.attainable_flops), _flops(op.attained_flops),
         op.verdict)
        for op in r.ops
    ]  # fmt: skip
    columns = ("op", "FLOP/byte from the host", "P1", "P2", "balance, tokens", "attainable", "attained", "where")
    title = f"Hierarchical roofline of decode: {r.tokens:,} tokens a pass, {r.microbatch:,} a kernel"
    output.print_table(title, columns, rows, numeric=columns[1:7])


def _flops(value: float) -> str:
    return f"{value / 1e12:.3g} TFLOP/s" if value >= 1e11 else f"{value / 1e9:.3g} GFLOP/s"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
