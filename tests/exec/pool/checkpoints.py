"""Checkpoints to break: a small one of the Mixtral architecture, and one whose experts take several reads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from exec.pool.make import make_manifest
from exec.pool.places import headers_of
from exec.weights import Weights, random_weights, save_hf
from tests.exec import tiny

SPEC = tiny.spec(layers=2, hidden=64, ffn=96, experts=8)
LARGE = tiny.spec(layers=1, hidden=1024, ffn=1600, experts=2)
"""19.7 MB an expert: five reads."""


def small(folder: Path) -> Weights:
    weights = random_weights(SPEC, 3)
    save_hf(weights, SPEC, folder)
    make_manifest(folder)
    return weights


def large(folder: Path) -> np.ndarray:
    """Experts only, flat: what they are."""
    rng = np.random.default_rng(0)
    f, h = LARGE.ffn, LARGE.hidden
    shapes = {"w1": (f, h), "w3": (f, h), "w2": (h, f)}
    experts = [{w: rng.standard_normal(s, dtype=np.float32) for w, s in shapes.items()} for _ in range(LARGE.experts)]
    prefix = "model.layers.0.block_sparse_moe."
    tensors = {f"{prefix}experts.{e}.{w}.weight": a for e, parts in enumerate(experts) for w, a in parts.items()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    make_manifest(folder)
    return np.stack([np.concatenate([parts[w].ravel() for w in shapes]) for parts in experts])


def flip(folder: Path, tensor: str, byte: int = 5) -> None:
    """One bit of one tensor, with the file's times as they were."""
    place = next(h.places[tensor] for h in headers_of(folder).values() if tensor in h.places)
    before = os.stat(place.file)
    with place.file.open("r+b") as f:
        f.seek(place.offset + byte)
        old = f.read(1)[0]
        f.seek(place.offset + byte)
        f.write(bytes([old ^ 0x10]))
        f.flush()
        os.fsync(f.fileno())
    os.utime(place.file, ns=(before.st_atime_ns, before.st_mtime_ns))
