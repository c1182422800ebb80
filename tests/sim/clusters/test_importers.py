"""Helix cluster files and Skyplane tables, as recorded and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import clusters
from sim.clusters.importers import helix, skyplane
from sim.errors import UserError
from tests.traces.shared_data import folder

INI = """[ComputeNode-0]
type=T4
[ComputeNode-1]
type=L4x2
[Link-source-0]
bandwidth=100 * mbps
latency=1 * MilliSec
[Link-0-sink]
bandwidth=50 * mbps
latency=1 * MilliSec
[Link-0-1]
bandwidth=1 * gbps
latency=3 * MilliSec
"""


def test_a_helix_file_becomes_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "small.ini"
    path.write_text(INI)
    cluster = clusters.load(path)
    assert [(g.node, g.kind) for g in cluster.gpu] == [("node0", "T4"), ("node1", "L4"), ("node1", "L4")]
    assert helix.node_kind(cluster, "node1") == "L4x2"
    network = clusters.Network(cluster)
    assert network.capacities["wan.source.node0"] == 100e6 / 8 and network.capacities["wan.node0.source"] == 50e6 / 8
    assert network.path("node0", "node1").latency_s == pytest.approx(3e-3)
    assert network.path("source", "node1").latency_s == pytest.approx(4e-3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("type=T4\n", "type=H100\n", r"\[ComputeNode-0\] type: is 'H100'"),
        ("type=T4\n", "", r"\[ComputeNode-0\] type: missing"),
        ("100 * mbps", "100", r"\[Link-source-0\] bandwidth: is '100'; a number"),
        ("Link-0-1", "Link-0-7", r"\[Link-0-7\]: no node '7'"),
        ("[ComputeNode-0]", "[ComputeNode-0", "malformed .ini"),
    ],
)
def test_a_damaged_helix_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "small.ini"
    path.write_text(INI.replace(old, new))
    with pytest.raises(UserError, match=message):
        helix.read_cluster(path)


@pytest.mark.parametrize(("file", "nodes", "gpus"), [("cluster10.ini", 10, 10), ("cluster42.ini", 42, 42 + 4 + 6 + 12)])
def test_the_artifact_s_files(file: str, nodes: int, gpus: int) -> None:
    cluster = helix.read_cluster(folder("helix_clusters") / file)
    assert len(cluster.node) == nodes + 1 and len(cluster.gpu) == gpus
    assert len(cluster.links) == (nodes + 1) * nodes // 2
    assert {link.bytes_per_s for link in cluster.links} == {1e9 / 8} and {link.rtt_s for link in cluster.links} == {2e-3}


def test_timing_tables_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    prompt, decode = helix.read_profiles(folder("helix_clusters"), "llama2_70b", {"T4x2"})["T4x2"]
    assert prompt[0] == decode[0] == (0.0, 0.0) and prompt[-1][1] > decode[1][1] > 0
    bad = {"0,0\n2,x\n": "line 2", "0,0\n": "two or more", "0,0\n1\n": "line 2: has 1 columns", "2,1\n1,1\n": "ascending"}
    for text, message in bad.items():
        (tmp_path / "c.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            helix.read_curve(tmp_path / "c.csv")


def test_skyplane_links_are_the_measured_ones() -> None:
    regions = {"ORD": "azure:northcentralus", "AMS": "azure:westeurope", "SYD": "aws:ap-southeast-2"}
    links = skyplane.read_links(folder("skyplane_network"), regions)
    assert [(k.a, k.b) for k in links] == [("ORD", "AMS"), ("ORD", "SYD"), ("AMS", "SYD")]
    first = links[0]
    assert first.rtt_s == pytest.approx(0.094933) and first.usd_per_gb == 0.05
    assert first.bytes_per_s == pytest.approx(13.034429647664263e9 / 8)
    assert first.back_bytes_per_s == pytest.approx(13.076056419915236e9 / 8)


def test_the_fastest_tier_counts_and_a_lone_direction_stands_for_both(tmp_path: Path) -> None:
    (tmp_path / "latency.csv").write_text("src_region,dst_region,avg_rtt\nx,y,30\nx,y,20\ny,z,10\nz,x,5\n")
    (tmp_path / "throughput.csv").write_text("src_region,dst_region,throughput_received\nx,y,8e9\nx,y,16e9\ny,z,\n")
    (link,) = skyplane.read_links(tmp_path, {"A": "x", "B": "y"})
    assert (link.rtt_s, link.bytes_per_s, link.back_bytes_per_s, link.usd_per_gb) == (0.02, 2e9, 2e9, 0.0)
    with pytest.raises(UserError, match="throughput.csv: no row between y and z"):
        skyplane.read_links(tmp_path, {"B": "y", "C": "z"})
    with pytest.raises(UserError, match="unknown name 'w'"):
        skyplane.read_links(tmp_path, {"B": "y", "C": "w"})
    (tmp_path / "latency.csv").write_text("src_region,dst_region,avg_rtt\nx,y,fast\n")
    with pytest.raises(UserError, match="line 2, column avg_rtt: is 'fast'"):
        skyplane.read_links(tmp_path, {"A": "x", "B": "y"})
