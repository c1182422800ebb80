"""`list`: what is built in."""

from __future__ import annotations

import sys
from typing import Any

from sim.cli import output


def models() -> list[dict[str, Any]]:
    from sim import models

    rows = []
    for name in models.names():
        m = models.load(name)
        rows.append({
            "name": m.name, "family": m.family, "layers": m.layers, "experts": m.experts, "top_k": m.top_k, "attention": m.attention,
            "dtype": m.dtype, "total_params": m.total_params, "active_params": m.active_params, "weight_bytes": m.weight_bytes,
            "executable": m.executable, "not_executable_because": m.not_executable_because,
        })  # fmt: skip
    return rows


def machines() -> list[dict[str, Any]]:
    from sim import machines

    rows: list[dict[str, Any]] = []
    for name in machines.names():
        m = machines.load(name)
        rows.append({
            "name": name, "kind": "machine", "description": m.description, "lanes": list(m.lane),
            "memory_bytes": {k: v.bytes for k, v in m.memories.items()},
            "capacities": {k: r.capacity for k, r in m.resources.items()}, "ranks": m.topology.ranks if m.topology else None,
            "rank_memory_bytes": m.topology.gpu.memory_bytes if m.topology else None,
        })  # fmt: skip
    for name in machines.rig_names():
        r = machines.load_rig(name)
        rows.append({
            "name": name, "kind": "rig", "description": r.description, "lanes": [],
            "memory_bytes": {k: v.bytes for k, v in r.memories.items()},
            "capacities": {f"link.{k}": link.bytes_per_s for k, link in r.links.items()}, "ranks": None, "rank_memory_bytes": None,
        })  # fmt: skip
    return rows


def workloads() -> list[dict[str, Any]]:
    from sim import workloads

    rows = []
    for name in workloads.names():
        w = workloads.load(name)
        rows.append({
            "name": name, "description": w.description, "longest_prompt": w.longest_prompt, "generation": w.longest_generation,
            "ends_early": w.ends_early, "source": w.source,
        })  # fmt: skip
    return rows


def schedulers() -> list[dict[str, Any]]:
    from sim.schedulers import registry

    rows = []
    for name in registry.names():
        cls = registry.load(name)
        summary = (sys.modules[cls.__module__].__doc__ or "").strip().splitlines()[0]
        rows.append({
            "name": name, "class": f"{cls.__module__}.{cls.__qualname__}", "lanes": list(cls.lanes), "summary": summary,
            "description": " ".join((cls.__doc__ or "").split()),
        })  # fmt: skip
    return rows


KINDS = {"models": models, "machines": machines, "workloads": workloads, "schedulers": schedulers}


def show(kind: str, as_json: bool) -> None:
    rows = KINDS[kind]()
    if as_json:
        output.print_json({kind: rows})
        return
    columns, cells = _TABLES[kind](rows)
    output.print_table(kind, columns, cells, numeric=_NUMERIC)


_NUMERIC = ("ranks", "layers", "experts", "params", "active", "weights", "longest prompt", "gen", "GPU memory", "H2D")
_Table = tuple[tuple[str, ...], list[tuple[object, ...]]]


def _models_table(rows: list[dict[str, Any]]) -> _Table:
    columns = ("name", "layers", "experts", "params", "active", "weights", "attention", "really runs")
    return columns, [
        (r["name"], r["layers"], f"{r['top_k']} of {r['experts']}", f"{r['total_params'] / 1e9:.4g}B", f"{r['active_params'] / 1e9:.3g}B",
         output.size(r["weight_bytes"]), r["attention"], "yes" if r["executable"] else f"no: {r['not_executable_because']}")
        for r in rows
    ]  # fmt: skip


def _machines_table(rows: list[dict[str, Any]]) -> _Table:
    columns = ("name", "kind", "ranks", "GPU memory", "H2D", "description")
    return columns, [
        (r["name"], r["kind"], r["ranks"] or "", _gpu_memory(r), _host_link(r), r["description"])
        for r in rows
    ]  # fmt: skip


def _gpu_memory(row: dict[str, Any]) -> str:
    """Of all GPUs, as one or as ranks."""
    return output.size(row["memory_bytes"]["gpu"] if row["memory_bytes"] else row["ranks"] * row["rank_memory_bytes"])


def _host_link(row: dict[str, Any]) -> str:
    return f"{output.size(row['capacities']['link.h2d'] or 0)}/s" if row["capacities"] else ""


def _workloads_table(rows: list[dict[str, Any]]) -> _Table:
    columns = ("name", "longest prompt", "gen", "ends", "description")
    ends = {True: "on their own", False: "as asked"}
    return columns, [(r["name"], r["longest_prompt"], r["generation"], ends[r["ends_early"]], r["description"]) for r in rows]


def _schedulers_table(rows: list[dict[str, Any]]) -> _Table:
    return ("name", "lanes", "what it is"), [(r["name"], " ".join(r["lanes"]), r["summary"]) for r in rows]


_TABLES = {"models": _models_table, "machines": _machines_table, "workloads": _workloads_table, "schedulers": _schedulers_table}
