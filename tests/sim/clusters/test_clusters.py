"""Clusters: what is built in, how messages travel, and what a bad file says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim import clusters
from sim.errors import UserError

TWO: dict[str, Any] = {
    "kind": "cluster", "name": "two", "coordinator": "a",
    "gpus": {"G": {"flops": 1e14, "bytes_per_s": 1e12, "memory_bytes": 10**10, "source": "made up"}},
    "regions": {"A": {"latency_s": 1e-3}, "B": {}, "C": {}},
    "nodes": {
        n: {"region": n.upper(), "count": c, "gpu": "G", "nic_out_bytes_per_s": 1e9, "nic_in_bytes_per_s": 2e9, "nic_latency_s": 1e-4,
            "tunnel_cores": 2, "source": "made up"}
        for n, c in (("a", 1), ("b", 2), ("c", 1))
    },
    "links": [
        {"a": "A", "b": "B", "rtt_s": 0.02, "bytes_per_s": 1e8, "back_bytes_per_s": 5e7, "loss": 0.1, "usd_per_gb": 0.05, "source": "none"},
        {"a": "B", "b": "C", "rtt_s": 0.04, "bytes_per_s": 1e8, "loss": 0.5, "usd_per_gb": 0.02, "source": "made up"},
    ],
    "tunnel": {"overhead_bytes": 60, "payload_bytes": 1200, "core_s_per_byte": 1e-9, "source": "made up"},
}  # fmt: skip


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({**TWO, **changes}))
    return path


def test_five_regions_is_the_cluster_of_the_study() -> None:
    cluster = clusters.load("five-regions")
    found = Counter((gpu.region, gpu.kind) for gpu in cluster.gpu)
    assert found == {("IAD", "A100-80"): 4, ("SJC", "A100-40"): 6, ("AMS", "L40S"): 8, ("SYD", "A10"): 12}
    assert cluster.node[cluster.coordinator].region == "ORD"
    network = clusters.Network(cluster)
    rtts = [2 * network.graph.edges["ORD", r]["latency_s"] for r in ("IAD", "SJC", "AMS", "SYD")]
    assert min(rtts) == 0.02 and max(rtts) == 0.18
    assert all(network.capacities[f"nic.{n}.out"] == 25e9 / 8 for n in cluster.node)


@pytest.mark.parametrize("name", clusters.names())
def test_every_node_of_a_builtin_reaches_every_other(name: str) -> None:
    cluster = clusters.load(name)
    network = clusters.Network(cluster)
    for a in cluster.node:
        for b in cluster.node:
            path = network.path(a, b)
            assert (path.link_class == "node") == (a == b)
            assert all(resource in network.capacities for resource, _ in path.resources)
            assert network.rtt_s(a, b) == pytest.approx(network.rtt_s(b, a))


def test_a_message_between_regions_pays_for_its_tunnel_and_the_detour(tmp_path: Path) -> None:
    network = clusters.Network(clusters.load(written(tmp_path)))
    path = network.path("a", "c")
    assert path.resources == (
        ("nic.a.out", 1.05), ("wan.A.B", 1.05), ("wan.B.C", 1.05), ("nic.c.in", 1.05), ("tunnel.a", 1e-9), ("tunnel.c", 1e-9)
    )  # fmt: skip
    assert path.latency_s == pytest.approx(1e-4 + 0.01 + 0.02 + 1e-4)
    assert path.loss == pytest.approx(1 - 0.9 * 0.5) and path.link_class == "wan"
    assert path.usd_per_byte == pytest.approx(0.07 * 1.05 / 1e9)
    assert network.capacities["wan.A.B"] == 1e8 and network.capacities["wan.B.A"] == 5e7 and network.capacities["tunnel.a"] == 2


def test_a_message_inside_a_region_crosses_nics_only(tmp_path: Path) -> None:
    nodes = {**TWO["nodes"], "a": {**TWO["nodes"]["a"], "count": 2}}
    network = clusters.Network(clusters.load(written(tmp_path, nodes=nodes, coordinator="a-0")))
    path = network.path("a-0", "a-1")
    assert path.resources == (("nic.a-0.out", 1.0), ("nic.a-1.in", 1.0))
    assert path.latency_s == pytest.approx(2e-4 + 1e-3) and path.link_class == "region" and path.loss == 0


def test_regions_without_a_chain_of_links_are_named(tmp_path: Path) -> None:
    network = clusters.Network(clusters.load(written(tmp_path, links=TWO["links"][:1])))
    with pytest.raises(UserError, match="no chain of links joins A and C"):
        network.path("a", "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinator": "x"}, "no node 'x'; have a, b-0, b-1, c"),
        ({"links": [TWO["links"][0], {**TWO["links"][0], "a": "B", "b": "A"}]}, r"links\[1\]: B to A is declared twice"),
        ({"links": [{**TWO["links"][0], "b": "Z"}]}, "no region 'Z'"),
        ({"nodes": {"a": {**TWO["nodes"]["a"], "gpu": "H"}}}, "nodes.a.gpu: no kind 'H'"),
        ({"gpus": {"G": {**TWO["gpus"]["G"], "flops": 1}}}, "gpus.G.flops"),
        ({"kind": "machine"}, "a cluster .* is needed"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        clusters.load(written(tmp_path, **changes))


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'five-regions'"):
        clusters.load("five-region")
