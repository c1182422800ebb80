"""A small CGOPipe-like run on two clocks, made without the engines: what the reports are tested with."""

from __future__ import annotations

import numpy as np

from sim.report.critical import Dependencies
from traces.files import Provenance
from traces.timeline import Timeline

US = 10**6
LANES = ("gpu", "cpu", "h2d", "d2h", "pin", "")
SECONDS = {
    "layer_to_gpu": ("h2d", 900), "pre_attn": ("gpu", 60), "offload_qkv": ("d2h", 30), "attn_decode": ("cpu", 210),
    "load_hidden": ("h2d", 20), "page_to_pin": ("pin", 150), "page_to_gpu": ("h2d", 190), "post_attn": ("gpu", 170), "sample": ("gpu", 80),
}  # fmt: skip
"""Lane and microseconds of each op."""


class Run:
    """Starts each task as soon as its lane is free and its dependencies are done."""

    def __init__(self, seed: int | None) -> None:
        self.random = None if seed is None else np.random.default_rng(seed)
        self.free = dict.fromkeys(LANES, 0)
        self.rows: list[tuple[object, ...]] = []
        self.deps: list[list[int]] = []

    def add(self, op: str, deps: list[int], phase: str, step: int, layer: int, microbatch: int) -> int:
        lane, duration = SECONDS[op][0], SECONDS[op][1] * US
        start = max([self.free[lane], *(self.rows[d][8] for d in deps)])
        if self.random is not None:
            start += int(self.random.exponential(6 * US))
            duration = int(duration * self.random.lognormal(0.03, 0.06))
        self.free[lane] = start + duration
        self.rows.append((len(self.rows), op, lane, phase, step, layer, microbatch, start, start + duration))
        self.deps.append(deps)
        return len(self.rows) - 1


def cgopipe_like(steps: int = 4, layers: int = 3, microbatches: int = 3, seed: int | None = None) -> tuple[Timeline, Dependencies]:
    """`seed` None: the exact simulation; else a "measured" run with jitter and dispatch gaps."""
    run = Run(seed)
    last: list[int] = []
    for layer in range(layers):
        weights = run.add("layer_to_gpu", [], "prefill", 0, layer, -1)
        last = [run.add("post_attn", [weights], "prefill", 0, layer, j) for j in range(microbatches)]
    last = [run.add("sample", [d], "prefill", 0, -1, j) for j, d in enumerate(last)]
    for step in range(1, steps + 1):
        for layer in range(layers):
            last = _layer(run, step, layer, last)
        last = [run.add("sample", [d], "decode", step, -1, j) for j, d in enumerate(last)]
    return _timeline(run, "simulated" if seed is None else "measured"), _dependencies(run)


def _layer(run: Run, step: int, layer: int, last: list[int]) -> list[int]:
    attended = []
    for j, before in enumerate(last):
        pre = run.add("pre_attn", [before], "decode", step, layer, j)
        attended.append(run.add("attn_decode", [run.add("offload_qkv", [pre], "decode", step, layer, j)], "decode", step, layer, j))
    pages, out = [], []
    for j, attention in enumerate(attended):
        hidden = run.add("load_hidden", [attention], "decode", step, layer, j)
        pages.append(run.add("page_to_gpu", [run.add("page_to_pin", [], "decode", step, layer, j)], "decode", step, layer, j))
        out.append(run.add("post_attn", [hidden, *pages[:1]], "decode", step, layer, j))
    return out


def _timeline(run: Run, clock: str) -> Timeline:
    number, op, lane, phase, step, layer, microbatch, start, end = (np.array(c) for c in zip(*run.rows, strict=True))
    ops, phases = tuple(SECONDS), ("", "prefill", "decode")
    n = len(number)
    return Timeline(
        task_id=number.astype(np.int64), attempt=np.zeros(n, np.int16), op=np.array([ops.index(o) for o in op], np.int32),
        lane=np.array([LANES.index(name) for name in lane], np.int32), rank=np.zeros(n, np.int16),
        phase=np.array([phases.index(p) for p in phase], np.int32), step=step.astype(np.int32), layer=layer.astype(np.int16),
        microbatch=microbatch.astype(np.int16), start_ps=start.astype(np.int64), end_ps=end.astype(np.int64), bytes=np.zeros(n, np.int64),
        flops=np.zeros(n, np.int64), status=np.zeros(n, np.int32), ops=ops, lanes=LANES,
        provenance=Provenance("synthetic", "tests", "simulated" if clock == "simulated" else "measured", command="pytest"),
    )  # fmt: skip


def _dependencies(run: Run) -> Dependencies:
    lengths = [len(d) for d in run.deps]
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    return Dependencies(np.arange(len(lengths)), ptr, np.array([d for deps in run.deps for d in deps], np.int64))
