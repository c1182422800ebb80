"""Helix's cluster files (.ini) and layer timing tables (ASPLOS'25 artifact).

Every compute node becomes a region of its own, because the file gives a link to each pair of nodes. Source
and sink are one node here, `source`: the coordinator that requests come from and answers go to.
"""

from __future__ import annotations

import ast
import configparser
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim import configuration
from sim.clusters.schema import Cluster
from sim.errors import UserError

UNITS = {"bps": 1 / 8, "kbps": 1e3 / 8, "mbps": 1e6 / 8, "gbps": 1e9 / 8, "MilliSec": 1e-3, "Sec": 1.0, "GB": 1e9, "MB": 1e6}
"""In bytes/s, seconds and bytes; bandwidths are in bits (avg_bandwidth 1000000000 is written as 1000 mbps)."""

NIC_BYTES_PER_S = 10 * UNITS["gbps"]
"""google_machine_profiles.ini: every machine has 10 gbps both ways."""

PEAKS = {
    "A100": (312e12, 1555e9, 40e9, 1), "V100": (125e12, 900e9, 16e9, 1), "L4": (121e12, 300e9, 24e9, 1),
    "L4x2": (121e12, 300e9, 24e9, 2), "T4": (65e12, 320e9, 16e9, 1), "T4x2": (65e12, 320e9, 16e9, 2), "T4x4": (65e12, 320e9, 16e9, 4),
}  # fmt: skip
"""Dense fp16 FLOP/s, bytes/s and bytes of one GPU (datasheets), and GPUs of a node; memory as in google_machine_profiles.ini."""

Curve = tuple[tuple[float, float], ...]
"""(tokens in a batch, seconds of one layer), ascending."""


def read_cluster(path: Path) -> Cluster:
    """A cluster file as a `Cluster`. Raises `UserError` that names the section and key."""
    ini = _parse(path)
    names = [s for s in ini.sections() if s.startswith("ComputeNode-")]
    if not names:
        raise UserError(f"{path}: has no section [ComputeNode-0]; a Helix cluster file is needed")
    kinds = {s.removeprefix("ComputeNode-"): _get(path, ini, s, "type") for s in names}
    for n, kind in kinds.items():
        if kind not in PEAKS:
            raise UserError(f"{path}: [ComputeNode-{n}] type: is {kind!r}; have {', '.join(PEAKS)}")
    source = f"{path.name}; 10 Gb/s NICs (google_machine_profiles.ini)"
    nic = {"nic_out_bytes_per_s": NIC_BYTES_PER_S, "nic_in_bytes_per_s": NIC_BYTES_PER_S, "nic_latency_s": 0.0, "source": source}
    nodes: dict[str, Any] = {"source": {"region": "source", "gpus": 0, **nic}}
    for n, kind in kinds.items():
        nodes[f"node{n}"] = {"region": f"node{n}", "gpu": kind.split("x")[0], "gpus": PEAKS[kind][3], **nic}
    gpus = {
        k: {"flops": f, "bytes_per_s": b, "memory_bytes": int(m), "source": "datasheet"}
        for k, (f, b, m, count) in PEAKS.items() if count == 1 and k in {v.split("x")[0] for v in kinds.values()}
    }  # fmt: skip
    values = {
        "kind": "cluster", "name": path.stem, "coordinator": "source", "description": "from Helix's artifact (generated, not measured)",
        "gpus": gpus, "regions": {name: {} for name in nodes}, "nodes": nodes, "links": _links(path, ini, set(kinds)),
    }  # fmt: skip
    return configuration.parse(path, values, Cluster)


def _links(path: Path, ini: configparser.ConfigParser, known: set[str]) -> list[dict[str, Any]]:
    """One link a pair; source-i and i-sink are the two directions of the coordinator's link."""
    out: dict[frozenset[str], dict[str, Any]] = {}
    for section in ini.sections():
        if not section.startswith("Link-"):
            continue
        a, _, b = section.removeprefix("Link-").partition("-")
        for end in (a, b):
            if end not in known and end not in ("source", "sink"):
                raise UserError(f"{path}: [{section}]: no node {end!r}; have {', '.join(sorted(known))}, source and sink")
        a, b = (x if x == "source" else "source" if x == "sink" else f"node{x}" for x in (a, b))
        rate = quantity(path, section, "bandwidth", _get(path, ini, section, "bandwidth"))
        latency = quantity(path, section, "latency", _get(path, ini, section, "latency"))
        pair = frozenset((a, b))
        if pair in out:
            out[pair]["back_bytes_per_s"] = rate
        else:
            out[pair] = {"a": a, "b": b, "rtt_s": 2 * latency, "bytes_per_s": rate, "source": path.name}
    return list(out.values())


def _parse(path: Path) -> configparser.ConfigParser:
    ini = configparser.ConfigParser()
    ini.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        ini.read_string(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except (configparser.Error, UnicodeDecodeError) as e:
        raise UserError(f"{path}: malformed .ini ({' '.join(str(e).split())})") from None
    return ini


def _get(path: Path, ini: configparser.ConfigParser, section: str, key: str) -> str:
    if not ini.has_option(section, key):
        raise UserError(f"{path}: [{section}] {key}: missing")
    return ini.get(section, key)


def quantity(path: Path, section: str, key: str, text: str) -> float:
    """`1000 * mbps` in bytes/s, `1 * MilliSec` in seconds. Raises `UserError` for anything else."""
    number, _, unit = (part.strip() for part in text.partition("*"))
    try:
        return float(ast.literal_eval(number)) * UNITS[unit]
    except (ValueError, SyntaxError, TypeError, KeyError):
        raise UserError(f"{path}: [{section}] {key}: is {text!r}; a number * one of {', '.join(UNITS)} is needed") from None


def read_curve(path: Path) -> Curve:
    """A `bs2time` table: tokens in a batch, milliseconds of one layer. Raises `UserError` with the line."""
    points: list[tuple[float, float]] = []
    try:
        with path.open(newline="", encoding="utf-8") as f:
            for line, row in enumerate(csv.reader(f), 1):
                if len(row) != 2:
                    raise UserError(f"{path}: line {line}: has {len(row)} columns; tokens,milliseconds are needed")
                points.append((float(row[0]), float(row[1]) / 1e3))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except ValueError as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{path}: line {line}: {e}") from None
    if len(points) < 2 or any(b[0] <= a[0] for a, b in zip(points, points[1:], strict=False)):
        raise UserError(f"{path}: must hold two or more lines with ascending numbers of tokens")
    return tuple(points)


def node_kind(cluster: Cluster, node: str) -> str:
    """Helix's name of a node's machine: T4x2 for two T4."""
    group = cluster.node[node].group
    assert group.gpu is not None, node
    return group.gpu if group.gpus == 1 else f"{group.gpu}x{group.gpus}"


def read_profiles(folder: Path, model: str, kinds: set[str]) -> Mapping[str, tuple[Curve, Curve]]:
    """(prompt, decode) curves of each machine kind, from MODEL__KIND__{prompt,decode}_bs2time.csv."""
    def curve(kind: str, phase: str) -> Curve:
        return read_curve(folder / f"{model}__{kind.lower()}__{phase}_bs2time.csv")

    return {kind: (curve(kind, "prompt"), curve(kind, "decode")) for kind in sorted(kinds)}
