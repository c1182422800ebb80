"""`list`: what is built in."""

from __future__ import annotations

import sys
from collections import Counter
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
        rows.append({
            "name": name, "class": f"{cls.__module__}.{cls.__qualname__}", "lanes": list(cls.lanes), "summary": _first_line(cls),
            "description": " ".join((cls.__doc__ or "").split()),
        })  # fmt: skip
    return rows


def systems() -> list[dict[str, Any]]:
    from sim.ep import systems

    short = {full: name for name, full in systems.SHORT.items()}
    return [
        {"name": s.name, "short": short.get(s.name), "scheduler": s.scheduler, "padded": s.padded, "summary": s.source}
        for s in systems.SYSTEMS.values()
    ]  # fmt: skip


def policies() -> list[dict[str, Any]]:
    from sim import named
    from sim.placement import policy

    return [
        {
            "name": name, "options": named.options(found), "whole_layers": found.whole_layers,
            "summary": _first_line(found),
        }
        for name, found in ((name, type(policy.load(name))) for name in policy.names())
    ]  # fmt: skip


def clusters() -> list[dict[str, Any]]:
    from sim import clusters

    return [
        {
            "name": name, "description": c.description, "regions": list(c.regions), "nodes": len(c.node),
            "gpus": dict(Counter(gpu.kind for gpu in c.gpu)), "memory_bytes": sum(gpu.spec.memory_bytes for gpu in c.gpu),
        }
        for name, c in ((name, clusters.load(name)) for name in clusters.names())
    ]  # fmt: skip


def _first_line(cls: type[Any]) -> str:
    """Of the file that it is in."""
    return (sys.modules[cls.__module__].__doc__ or "").strip().splitlines()[0]


KINDS = {
    "models": models, "machines": machines, "clusters": clusters, "workloads": workloads, "schedulers": schedulers, "systems": systems,
    "policies": policies,
}  # fmt: skip


def show(kind: str, as_json: bool) -> None:
    rows = KINDS[kind]()
    if as_json:
        output.print_json({kind: rows})
        return
    columns, cells = _TABLES[kind](rows)
    output.print_table(kind, columns, cells, numeric=_NUMERIC)


_NUMERIC = ("ranks", "regions", "nodes", "layers", "experts", "params", "active", "weights", "longest prompt", "gen", "GPU memory", "H2D")
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


def _systems_table(rows: list[dict[str, Any]]) -> _Table:
    return ("name", "or", "what it is"), [(r["name"], r["short"] or "", r["summary"]) for r in rows]


def _policies_table(rows: list[dict[str, Any]]) -> _Table:
    return ("name", "options", "what it is"), [(r["name"], " ".join(r["options"]), r["summary"]) for r in rows]


def _clusters_table(rows: list[dict[str, Any]]) -> _Table:
    columns = ("name", "regions", "nodes", "GPUs", "GPU memory", "description")
    return columns, [
        (r["name"], len(r["regions"]), r["nodes"], ", ".join(f"{n} {kind}" for kind, n in r["gpus"].items()),
         output.size(r["memory_bytes"]), r["description"])
        for r in rows
    ]  # fmt: skip


_TABLES = {
    "models": _models_table, "machines": _machines_table, "clusters": _clusters_table, "workloads": _workloads_table,
    "schedulers": _schedulers_table, "systems": _systems_table, "policies": _policies_table,
}  # fmt: skip
