"""`moe-layer`: one MoE layer over the GPUs of a machine, under several systems, with jitter."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.cli import compiling, options, output
from sim.errors import UserError

if TYPE_CHECKING:
    from sim.ep.layer import MoELayer
    from sim.ep.routing import Counts
    from sim.ep.study import Outcome
    from sim.ep.systems import System
    from sim.jitter import Jitter
    from sim.machines.schema import Machine


TELL_S = 2.0
"""Between two words about how far it is."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The command's flags, resolved. routing: "trace" or "synthetic"."""

    model: str
    machine: Machine
    layer: MoELayer
    tokens: tuple[int, ...]
    counts: Counts
    routing: str
    systems: Sequence[System]
    jitter: Jitter
    steps: int
    seed: int
    capacity_factor: float | None


def layer_of(model: str, sizes: Mapping[str, int | None], gated: bool, dtype: str | None) -> MoELayer:
    """Sizes that were given win over the model's."""
    from sim import models
    from sim.ep.layer import MoELayer

    found = MoELayer.of(models.load(model), gated)
    given: dict[str, Any] = {name: value for name, value in {**sizes, "dtype": dtype}.items() if value is not None}
    return replace(found, **given)


def ask(
    model: str, machine: str, tokens: int, schedulers: str, *, sizes: Mapping[str, int | None], gated: bool, dtype: str | None,
    trace: Path | None, skew: float, capacity_factor: float | None, jitter: str, steps: int, seed: int, rates: Sequence[str] = (),
) -> Asked:  # fmt: skip
    """Raises `UserError` for the first thing that is wrong."""
    from sim import machines
    from sim.ep import routing, systems
    from sim.fabric import ranks, topology_of
    from sim.jitter import Jitter
    from sim.schedulers.ep.packets import capacity

    chosen, box = systems.load_all(schedulers), machines.load(machine)
    layer = layer_of(model, sizes, gated, dtype)
    if layer.dtype not in topology_of(box).gpu.peaks:
        raise UserError(f"--dtype: is {layer.dtype}; {box.name} has peaks of {', '.join(topology_of(box).gpu.peaks)}")
    for rate in rates:
        chosen = [systems.with_rate(system, rate, topology_of(box).ops, layer.dtype) for system in chosen]
    shares = (tokens,) * ranks(box)
    delays = Jitter.named(jitter)
    if trace is None:
        counts = routing.drawn(layer, shares, seed, skew)
    else:
        counts, short = routing.recorded(layer, shares, trace)
        if short:
            output.note(f"{trace} has fewer rows than {sum(shares)}: they are used again from the beginning")
    if capacity_factor is not None:
        room = [capacity(t, layer.experts, layer.top_k, capacity_factor) for t in shares]
        kept = routing.limited(counts, room)
        if kept.sum() < counts.sum():
            output.note(f"{1 - kept.sum() / counts.sum():.1%} of the rows are beyond the capacity and dropped")
        counts = kept
    source = "synthetic" if trace is None else "trace"
    return Asked(model, box, layer, shares, counts, source, chosen, delays, steps, seed, capacity_factor)


def run(asked: Asked, *, timeline: Path | None, plot: Path | None, as_json: bool) -> None:
    from sim.ep.study import compile_engine

    output.check_writable("--timeline", timeline, options.TIMELINE_SUFFIXES)
    output.check_writable("--plot", plot, (".svg", ".png"))
    with output.steps(f"simulating {len(asked.systems)} systems") as tell, compiling.told():
        compile_engine()
        outcomes = [_study(asked, system, tell) for system in asked.systems]
    if timeline is not None:
        for outcome in outcomes:
            write_timeline(outcome, asked, _path(timeline, outcome.prepared.system.name, len(outcomes)))
    if plot is not None:
        from sim.ep.picture import write_picture

        write_picture(plot, outcomes)
    rows = [dict(outcome.row) for outcome in outcomes]
    if as_json:
        output.print_json({**about(asked), "results": rows})
    else:
        print_results(asked, rows)


def _study(asked: Asked, system: System, tell: Callable[[str], None]) -> Outcome:
    from sim.ep.study import prepare, study

    prepared = prepare(
        system, asked.machine, asked.layer, asked.tokens, asked.counts, capacity_factor=asked.capacity_factor, seed=asked.seed
    )
    tell(f"{system.name}: {len(prepared.plan):,} tasks built in {prepared.build_s:.2f} s")
    told = time.monotonic()

    def done(steps: int) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            tell(f"{system.name}: step {steps} of {asked.steps}")

    return study(prepared, asked.jitter, asked.steps, asked.seed, done)


def about(asked: Asked) -> dict[str, Any]:
    """What was simulated."""
    layer = asked.layer
    return {
        "clock": "simulated", "routing": asked.routing, "model": asked.model, "machine": asked.machine.name, "ranks": len(asked.tokens),
        "tokens_per_gpu": asked.tokens[0],
        "layer": {"hidden": layer.hidden, "ffn": layer.ffn, "experts": layer.experts, "top_k": layer.top_k, "gated": layer.gated,
                  "dtype": layer.dtype},
        "jitter": asked.jitter.name, "steps": asked.steps, "seed": asked.seed, "sources": sources(asked.machine),
        "systems": {s.name: {"source": s.source, "ops": [op.model_dump(exclude_defaults=True) for op in s.ops]} for s in asked.systems},
    }  # fmt: skip


def sources(machine: Machine) -> dict[str, str]:
    """Where the machine's figures come from: its GPU, its links, its rows of the op table."""
    from sim.fabric import topology_of

    t = topology_of(machine)
    links = {" - ".join(link.ends): link.source for link in (*t.links, *t.network)}
    return {"gpu": t.gpu.source, **links, **{f"ops.{row.lane}.{row.op}": row.source for row in t.ops}}


def _path(path: Path, name: str, many: int) -> Path:
    """OUT, or OUT-SYSTEM where there are several."""
    return path if many == 1 else path.with_stem(f"{path.stem}-{name.replace(':', '-').replace('/', '-')}")


def write_timeline(outcome: Outcome, asked: Asked, path: Path) -> None:
    """Of the step whose latency is the median."""
    from sim.timeline import timeline_of
    from traces.chrome import write_chrome
    from traces.files import Provenance
    from traces.timeline import write_timeline as write_parquet

    origin = f"simulated {outcome.prepared.system.name}, one MoE layer of {asked.model} on {asked.machine.name}"
    found = timeline_of(outcome.run, Provenance("synthetic", origin, "simulated"))
    (write_parquet if path.suffix == ".parquet" else write_chrome)(path, found)


def print_results(asked: Asked, rows: Sequence[Mapping[str, Any]]) -> None:
    layer = asked.layer
    shape = f"hidden {layer.hidden}, ffn {layer.ffn}{'' if layer.gated else ' (not gated)'}, {layer.experts} experts, top-{layer.top_k}"
    jitter = "no jitter" if asked.jitter.name == "none" else f"jitter {asked.jitter.name}, {asked.steps} steps"
    place = f"{asked.machine.name}, {asked.tokens[0]:,} tokens a GPU"
    title = f"one MoE layer ({shape}, {layer.dtype}) on {place}, routing: {asked.routing}, {jitter}"
    columns = ("scheduler", "median", "p95", "p99", "tensor busy", "HBM busy", "comm hidden", "wire", "launches", "tasks", "build", "run")
    table = [
        (r["scheduler"], *(output.seconds(r["latency_s"][p]) for p in ("median", "p95", "p99")), f"{r['tensor_busy']:.1%}",
         f"{r['hbm_busy']:.1%}", f"{r['comm_hidden']:.1%}", output.size(r["wire_bytes"]), r["launches"], f"{r['tasks']:,}",
         output.seconds(r["build_s"]), output.seconds(r["run_s"]))
        for r in rows
    ]  # fmt: skip
    output.print_table(title, columns, table, numeric=columns[1:])
