"""The object of `run --ranks --json`."""

from __future__ import annotations

from typing import Any

import numpy as np

from exec.cluster.execute import Executed
from exec.cluster.prices import simulate
from exec.cluster.runs import Difference, Setup
from sim.engines.run import Run
from sim.ep.measures import hidden
from sim.machines.schema import Machine
from sim.plan import Plan
from sim.tasks import PS_PER_S
from sim.timeline import timeline_of
from traces.files import Provenance
from traces.timeline import Timeline


def summarize(setup: Setup, done: Executed, difference: Difference | None, profile: Machine | None = None) -> dict[str, Any]:
    """profile: of these ranks; then the same layers are simulated by it.

    makespan_s: from the common start to the last end on any rank. layer_s: of one MoE layer, where only layers were run.
    comm_hidden: share of the time with a put to or from a rank in which the rank also computes. clock_offsets: see
    `exec.cluster.clocks`; device_clocks: by rank, its device's clock on its host's, where it has a device. wire_bytes: rows
    that really went to another rank."""
    order, run = setup.order, done.run
    makespan_s = run.makespan_ps / PS_PER_S
    generated = sum(len(t) for o in done.outputs.values() for t in o.tokens.values())
    rows = sum(order.tokens) * setup.layers if not order.serves else None
    return {
        "clock": "measured",
        "model": order.model.name,
        "machine": profile.name if profile else "",
        "scheduler": setup.scheduler,
        "ranks": order.ranks,
        "tokens_per_rank": list(order.tokens) if not order.serves else [order.rows_of(r) for r in range(order.ranks)],
        "layers": setup.layers,
        "chunks": order.chunks,
        "makespan_s": makespan_s,
        "simulated": _simulated(setup, done, profile) if profile else None,
        "layer_s": makespan_s / setup.layers if rows is not None else None,
        "generated_tokens": generated,
        "tokens_per_s": (rows if rows is not None else generated) / makespan_s,
        "tasks": len(run),
        "wire_bytes": wire_bytes(setup, done),
        "comm_hidden": hidden(run, _plan(run), order.ranks),
        "lanes": {name: ps / PS_PER_S for name, ps in run.busy_ps().items() if ps},
        "clock_offsets": {
            str(rank): {
                "offset_us": b.offset_ns / 1e3, "uncertainty_us": b.uncertainty_ns / 1e3, "moved_us": (a.offset_ns - b.offset_ns) / 1e3,
            }
            for rank, (b, a) in sorted(done.offsets.items())
        },
        "device_clocks": {str(rank): o.clock._asdict() for rank, o in sorted(done.outputs.items()) if o.clock is not None},
        "max_difference": difference.largest if difference else None,
        "tokens_equal": difference.tokens_equal if difference else None,
    }  # fmt: skip


def _simulated(setup: Setup, done: Executed, profile: Machine) -> dict[str, float]:
    """The same Plan by a profile, the routers having chosen what they chose. error: over the measured makespan."""
    makespan_s = simulate(profile, setup.order, _plan(done.run), done.outputs).makespan_ps / PS_PER_S
    return {"makespan_s": makespan_s, "error": makespan_s * PS_PER_S / done.run.makespan_ps - 1.0}


def _plan(run: Run) -> Plan:
    source = run.sources[0]
    assert isinstance(source, Plan), source
    return source


def wire_bytes(setup: Setup, done: Executed) -> int:
    """Each row that a rank sends to another's expert comes back once."""
    order = setup.order
    rows = 0
    for rank, outputs in done.outputs.items():
        counts = np.array([c for *_, c in outputs.counts]).reshape(-1, order.ranks, order.experts_per_rank)
        rows += int(counts.sum() - counts[:, rank].sum())
    return 2 * rows * order.model.hidden * order.model.dtype_bytes


def timeline(setup: Setup, run: Run, offsets: dict[str, Any] | None = None, device_clocks: dict[str, Any] | None = None) -> Timeline:
    """The run of all ranks on the controller's clock; how sure that clock is, and each device's on its host's, stands in the
    metadata."""
    facts = {
        f"clock_offset.{rank}": f"{o['offset_us']:.1f} us +- {o['uncertainty_us']:.1f} us against the controller, by ping-pong"
        for rank, o in (offsets or {}).items()
    }
    facts |= {
        f"device_clock.{rank}": f"events sure to {c['uncertainty_us']:.1f} us on the clock of its host, moved {c['moved_us']:+.1f} us"
        for rank, c in (device_clocks or {}).items()
    }
    origin = f"really run {setup.scheduler} of {setup.order.model.name} on {setup.order.ranks} ranks"
    return timeline_of(run, Provenance("recorded", origin, "measured", facts=facts))
