"""Clusters: nodes in regions and the links between them, built in, from YAML, or imported."""

from __future__ import annotations

from pathlib import Path

from sim import configuration, machines
from sim.clusters.network import Network
from sim.clusters.schema import Cluster
from sim.errors import UserError

__all__ = ["Cluster", "Network", "load", "names"]

_BUILTIN = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The built-in clusters."""
    return configuration.names(_BUILTIN)


def load(name_or_file: str | Path) -> Cluster:
    """A built-in cluster by name, one from a YAML file, or one from a Helix .ini file.

    Raises `UserError` for an unknown name (with the nearest one) or a bad file (with all its errors).
    """
    name = str(name_or_file)
    if name.endswith(".ini"):
        from sim.clusters.importers import helix

        return helix.read_cluster(Path(name))
    if name in machines.names():
        some = ", ".join(names())
        raise UserError(f"--machine: {name} is a machine, what is inside one node; a cluster is needed: {some}, or a YAML file")
    path = configuration.locate("--machine", name, _BUILTIN)
    values = configuration.read(path)
    if values.get("kind") != "cluster":
        raise UserError(f"--machine: {path}: kind: is {values.get('kind')!r}; a cluster (kind: cluster) is needed: {', '.join(names())}")
    return configuration.parse(path, values, Cluster)
