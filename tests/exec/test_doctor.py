"""doctor: facts that can be checked elsewhere, and a reason for everything that is not used."""

from __future__ import annotations

import json
import os

import pytest
import torch

from exec import doctor
from exec.cli.app import main


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.host, "memory_bytes_per_s", lambda: (11e9, 22e9))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this computer has a GPU")
def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["processor"]["cores"] == os.cpu_count()
    assert found["memory"]["all_threads_bytes_per_s"] == 22e9
    assert found["gpu"] is None
    cuda = next(f for f in found["fallbacks"] if f["feature"] == "--device cuda")
    assert cuda["instead"] == "--device cpu" and cuda["because"]


def test_the_table_names_every_fallback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "22 GB/s" in out
    for fallback in doctor.fallbacks():
        assert fallback["because"] in out


def test_numa_nodes_cover_the_cores() -> None:
    cores = 0
    for listed in doctor.numa_nodes().values():
        for part in listed.split(","):
            first, _, last = part.partition("-")
            cores += int(last or first) - int(first) + 1
    assert cores >= (os.cpu_count() or 1)


def test_missing_features_bring_their_fallbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from exec import products

    monkeypatch.setattr(doctor, "_flags", lambda: {"avx2"})
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(products, "has_openmp", lambda: False)
    monkeypatch.setattr(doctor, "numa_nodes", lambda: {"node0": "0-3", "node1": "4-7"})
    features = [f["feature"] for f in doctor.fallbacks()]
    assert {"our matrix tiles for every size", "kernels on several threads", "memory on the node that reads it"} <= set(features)
