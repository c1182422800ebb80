"""Measured loads from disk: what an expert's bytes take, what they cost the cores, what a load takes beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from exec.calibration.measure import on_thread
from exec.links import Link, sharpen_sleep
from exec.pool.loader import Chunk, Loader, cut, elements
from exec.pool.make import make_manifest
from exec.pool.manifest import LEAF_BYTES
from exec.pool.places import Piece, headers_of
from exec.runtime import Interrupt
from sim.machines.schema import OpRate

LANE = "nvme"
SIZES = (1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 25)
"""Bytes of a load."""
SAMPLES = 12


def measure(bytes_per_s: float | None) -> tuple[OpRate, float]:
    """The row of the op table for loads on the nvme lane, and the disk's own bytes/s.

    Reads files of its own, in the folder for temporary files, around the page cache. The curve is the CPU time of
    a load of so many bytes, of all threads that read and verify; the latency is the median time that a load takes
    beyond its bytes over the rate: that of the pace, or where there is none, the disk's.
    """
    with TemporaryDirectory(prefix="tandem-calibration-") as folder:
        chunks = _files(Path(folder))
        with Loader(headers_of(Path(folder)), LEAF_BYTES) as loader:
            native = _loads(loader, chunks, Link(LANE))
            rate = max(SIZES) / native[-1][0]
            spans = native if bytes_per_s is None else _loads(loader, chunks, Link(LANE, bytes_per_s))
    beyond = [wall - size / (bytes_per_s or rate) for size, (wall, _) in zip(SIZES, spans, strict=True)]
    curve = tuple((float(size), cpu) for size, (_, cpu) in zip(SIZES, native, strict=True))
    latency_s = max(0.0, float(np.median(beyond)))
    return OpRate(op="*", lane=LANE, latency_s=latency_s, curve=curve, source="calibrated: verified loads around the page cache"), rate


def _files(folder: Path) -> list[list[Chunk]]:
    """A checkpoint with one tensor of each size, and what a load of each is."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    save_file({f"{size}": rng.random(size // 4, dtype=np.float32) for size in SIZES}, folder / "model.safetensors")
    manifest = make_manifest(folder)
    (header,) = headers_of(folder).values()
    return [cut([Piece(header.places[str(size)], 0, 0)], manifest.leaf_bytes, manifest.leaves) for size in SIZES]


def _loads(loader: Loader, chunks: list[list[Chunk]], link: Link) -> list[tuple[float, float]]:
    """Median (seconds, CPU seconds) of a load of each size."""
    out, stop = np.zeros(max(SIZES) // 4, np.float32), Interrupt()

    def load(size: int, parts: list[Chunk]) -> None:
        transfer = link.begin(size, stop)
        loader.load(parts, out, stop, lambda chunk: transfer.count(4 * elements(chunk)))

    def all_sizes() -> list[float]:
        sharpen_sleep()
        return [x for size, parts in zip(SIZES, chunks, strict=True) for x in _median(lambda s=size, p=parts: load(s, p))]  # type: ignore[misc]

    found = on_thread(all_sizes, 1)
    return list(zip(found[::2], found[1::2], strict=True))


def _median(load: Callable[[], None]) -> tuple[float, float]:
    load()
    samples = []
    for _ in range(SAMPLES):
        wall, cpu = time.perf_counter(), time.process_time()
        load()
        samples.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall_s, cpu_s = np.median(np.array(samples), axis=0).tolist()
    return wall_s, cpu_s
