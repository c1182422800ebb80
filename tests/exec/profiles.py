"""A profile as calibration writes it, with invented op times, and a small model directory."""

from __future__ import annotations

from pathlib import Path

from exec.calibration import profile
from exec.weights import random_weights, save_hf
from sim.machines import load_rig
from sim.machines.schema import Machine, OpRate
from tests.exec import tiny

SPEC = tiny.spec(layers=2, hidden=64, ffn=96, vocab=300)
COPY_LANES = ("h2d", "d2h", "pin", "nvme")


def machine() -> Machine:
    compute = tuple(OpRate(op="*", lane=n, curve=((1.0, 1e-9), (64.0, 1e-8)), source="invented for a test") for n in ("gpu", "cpu"))
    copies = tuple(OpRate(op="*", lane=n, curve=((1.0, 1e-6), (1e6, 1e-4)), source="invented for a test") for n in COPY_LANES)
    return profile._machine(load_rig("laptop-rig"), 2.0, 20e9, 1, 1, compute + copies, 2e9)


def write(folder: Path, made: Machine | None = None) -> Path:
    path = folder / "profile.yaml"
    profile.write(made or machine(), path)
    return path


def model(folder: Path) -> Path:
    path = folder / "model"
    save_hf(random_weights(SPEC, 1), SPEC, path)
    return path
