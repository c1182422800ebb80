"""`place`: static scores of placement policies on recorded load."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.cli import output
from sim.errors import UserError

if TYPE_CHECKING:
    from sim.models import ModelSpec
    from sim.placement import Placement, Policy, Problem
    from sim.placement.recorded import Recorded


@dataclass(frozen=True, slots=True)
class Wanted:
    """The flags of `place`."""

    machine: str
    load: Sequence[Path]
    policies: Sequence[str]
    test_load: Sequence[Path] = ()
    gpus: int | None = None
    spares: int | None = None
    model: str | None = None
    groups: int = 1
    current: Path | None = None
    seed: int = 0
    to: Path | None = None
    html: Path | None = None


def place(wanted: Wanted, as_json: bool) -> None:
    """Score each policy, and print a table or one JSON object."""
    from sim.placement.policy import load, names

    output.check_writable("-o", wanted.to, (".json",))
    output.check_writable("--html", wanted.html, (".html",))
    if not wanted.policies:
        raise UserError(f"--policies: names none; have {', '.join(names())}")
    if wanted.to is not None and len(wanted.policies) > 1:
        raise UserError(f"-o: writes one placement; --policies names {len(wanted.policies)}")
    policies = [(text, load(text)) for text in wanted.policies]
    with output.steps("placing") as tell:
        problem, test = stated(wanted)
        results, placements = [], []
        for text, policy in policies:
            row, placement = scored(text, policy, problem, test, tell)
            results.append(row)
            placements.append(placement)
    found = summary(wanted, problem, test) | {"results": results}
    if wanted.to is not None:
        write(wanted.to, placements[0])
    if wanted.html is not None:
        from sim.report.placement import Scene, write_page

        write_page(wanted.html, Scene(problem, test, wanted.policies, results, placements), found)
    if as_json:
        output.print_json(found)
    else:
        show(found)


def stated(wanted: Wanted) -> tuple[Problem, Recorded | None]:
    """The problem, and what it is tested on."""
    from sim.placement import Problem, RoundRobin
    from sim.placement.fleet import gpus_for, gpus_of

    model = model_of(wanted)
    recorded, test = recordings(wanted, model)
    experts = recorded.shape[1]
    if experts % wanted.groups:
        raise UserError(f"--groups: is {wanted.groups}; must divide the {experts} experts")
    if model is None:
        gpus, memory = gpus_of(wanted.machine, experts, wanted.gpus, wanted.spares or 0), None
    else:
        gpus, memory = gpus_for(wanted.machine, model, wanted.gpus, wanted.spares)
    problem = Problem(recorded.windows, gpus, recorded.sample, memory=memory, groups=wanted.groups, seed=wanted.seed)
    current = RoundRobin().place(problem) if wanted.current is None else read_placement(wanted.current, problem)
    return replace(problem, current=current), test


def model_of(wanted: Wanted) -> ModelSpec | None:
    from sim import models

    return None if wanted.model is None else models.load(wanted.model)


def recordings(wanted: Wanted, model: ModelSpec | None) -> tuple[Recorded, Recorded | None]:
    """`--load` and `--test-load`, of one shape, and of the model's where one is given. Raises `UserError`."""
    from sim.placement.recorded import read

    recorded = read(wanted.load)
    test = read(wanted.test_load, "--test-load") if wanted.test_load else None
    if test is not None:
        recorded, test = alike(recorded, test)
    if model is not None:
        layers, experts = recorded.shape
        if layers != model.moe_layers or experts > model.experts or (experts < model.experts and recorded.sample is None):
            shown = f"{model.moe_layers} layers of {model.experts} experts; --load has {layers} of {experts}"
            raise UserError(f"--model: {model.name} has {shown}")
        recorded, test = recorded.with_experts(model.experts), None if test is None else test.with_experts(model.experts)
    return recorded, test


def alike(a: Recorded, b: Recorded) -> tuple[Recorded, Recorded]:
    """Both with as many experts, where a routing trace tells only those that it saw; `UserError` where they differ."""
    experts = max(a.shape[1], b.shape[1])
    fewer = a if a.shape[1] < experts else b
    if a.shape[0] != b.shape[0] or (a.shape[1] != b.shape[1] and fewer.sample is None):
        shown = f"{b.shape[0]} layers of {b.shape[1]} experts; --load has {a.shape[0]} of {a.shape[1]}"
        raise UserError(f"--test-load: has {shown}")
    return a.with_experts(experts), b.with_experts(experts)


def read_placement(path: Path, problem: Problem) -> Placement:
    """A placement file that fits the problem. Raises `UserError`."""
    from sim.placement import Placement

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"--current: {path}: cannot be read as JSON: {e}") from None
    found = Placement.from_json(value, f"--current: {path}")
    shape = (problem.layers, problem.experts, len(problem.gpus))
    if found.held.shape != shape:
        raise UserError(f"--current: {path}: is for (layers, experts, GPUs) {found.held.shape}; the problem has {shape}")
    return found


def scored(
    text: str, policy: Policy, problem: Problem, test: Recorded | None, tell: Callable[[str], None]
) -> tuple[dict[str, Any], Placement]:
    """One row of the results. The first call of a policy compiles it, so it places a trifle before the clock starts."""
    from sim.placement import measures
    from sim.placement.problem import Gpus, Problem

    tell(f"{text}: loading")
    small = Problem(np.ones((2, 2, 4)), Gpus.even(2, 4, 2), groups=1)
    if not policy.whole_layers:
        policy.place(small)
    tell(f"{text}: placing")
    began = time.perf_counter()
    placement = policy.place(problem, lambda line: tell(f"{text}: {line}"))
    wall_s = time.perf_counter() - began
    placement.check(problem, policy.whole_layers)
    seen = test if test is not None and test.sample is not None else problem
    row: dict[str, Any] = {
        "policy": text,
        "balancedness": measures.balancedness(placement, problem.windows.sum(axis=0), problem.gpus),
        "balancedness_test": None if test is None else measures.balancedness(placement, test.windows.sum(axis=0), problem.gpus),
        "gpus_touched": None if seen.sample is None else measures.gpus_touched(placement, seen.sample, problem.gpus),
        "regions_touched": None if seen.sample is None else measures.regions_touched(placement, seen.sample, problem.gpus),
        "moved": measures.moved(placement, problem), "wall_s": wall_s,
    }  # fmt: skip
    return row, placement


def write(path: Path, placement: Placement) -> None:
    from traces.files import replacing

    with replacing(path) as part:
        part.write_text(json.dumps(placement.to_json()) + "\n", encoding="utf-8")


def summary(wanted: Wanted, problem: Problem, test: Recorded | None) -> dict[str, Any]:
    """What was placed on what."""
    tokens = test.sample if test is not None and test.sample is not None else problem.sample
    return {
        "machine": wanted.machine, "model": wanted.model,
        "gpus": len(problem.gpus), "nodes": problem.gpus.nodes, "regions": problem.gpus.regions,
        "layers": problem.layers, "experts": problem.experts, "slots": problem.gpus.slots.tolist(),
        "memory": problem.budget.tolist(), "windows": len(problem.windows),
        "load": [str(p) for p in wanted.load], "test_load": [str(p) for p in wanted.test_load],
        "touched_on": None if tokens is None else ("test_load" if tokens is not problem.sample else "load"), "seed": wanted.seed,
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """The table for people."""
    columns = ("policy", "balancedness", "on test load", "GPUs touched", "regions touched", "moved", "took")
    rows = [
        (r["policy"], _figure(r["balancedness"]), _figure(r["balancedness_test"]), _figure(r["gpus_touched"]),
         _figure(r["regions_touched"]), f"{r['moved']:,}", output.seconds(r["wall_s"]))
        for r in found["results"]
    ]  # fmt: skip
    slots = sorted(set(found["slots"]))
    shown = f"{slots[0]}" if len(slots) == 1 else f"{slots[0]} to {slots[-1]}"
    title = f"{found['layers']} layers of {found['experts']} experts on {found['gpus']} GPUs of {found['machine']}"
    output.print_table(f"{title}, {shown} slots a layer each", columns, rows, columns[1:])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
