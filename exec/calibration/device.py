"""From a GPU and the host beside it to a machine profile: measured curves, then a correction from whole runs.

As `profile`, for `--device cuda`: the compute lane is charged to the GPU whole, by curves measured with its own events;
only tiles of a fused layer, a block each, have it in parts; copies run on copy engines and cost no core.
"""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable, Collection, Iterator

import numpy as np
import torch

from exec.backends.cuda import decoder, grouped
from exec.backends.cuda.decoder import DeviceLayer
from exec.backends.cuda.device import Device, Stream
from exec.backends.cuda.staging import Staging, copying
from exec.calibration import curves, host, insitu
from exec.calibration.copies import SIZES
from exec.calibration.curves import CONTEXTS, EXPERT_ROWS, PROMPTS, ROWS
from exec.calibration.insitu import Probe
from exec.calibration.profile import CPU_OPS, Say, processor
from exec.local import CUDA_RIG, compute_stream, free_bytes
from exec.runtime import Interrupt
from exec.weights import Weights, random_weights
from sim import models
from sim.machines.schema import Lane, Machine, Memory, OpRate, Resource
from sim.models.spec import ModelSpec

SAMPLES = 9
PIN_THREADS = 4
"""Threads that fill pinned memory, where there are so many: one copies at about 10 GB/s."""

PROBES = (
    Probe("resident", 20, 10, 40, 9, {}),
    Probe("resident", 6, 6, 90, 9, {}),
    Probe("cgopipe", 60, 12, 36, 6, {}),
    Probe("cgopipe", 40, 20, 72, 5, {}),
    Probe("fastdecode", 44, 11, 30, 6, {}),
    Probe("flexgen", 44, 11, 50, 5, {}),
    Probe("deepspeed", 14, 14, 60, 6, {}),
)


class Bench:
    """Device tensors that the components of `sim.ops` are timed on, two layers of weights in turn."""

    def __init__(self, spec: ModelSpec, weights: Weights, device: Device) -> None:
        self.spec, self.device, self.stream = spec, device, device.stream("gpu")
        self.there = device.torch_device
        self.layers = [DeviceLayer(*(torch.from_numpy(a).to(self.there) for a in w.arrays())) for w in weights.layers[:2]]
        self.experts = [torch.as_tensor(w).to(self.there) for w in weights.experts[:2]]
        self.embed, self.head, self.norm = (
            torch.from_numpy(a).to(self.there) for a in (weights.embed, weights.lm_head, weights.final_norm)
        )
        self.table = decoder.rope_table(spec.rope_theta, spec.head_dim, 2048, self.there)
        self._turn = itertools.cycle(range(len(self.layers)))

    def rows(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.there)

    def numbers(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.there)

    def seconds(self, work: Callable[[int], object]) -> float:
        """Median over the device's own stamps; the first two calls do not count. `work` is given a layer in turn."""
        spans = []
        for _ in range(SAMPLES + 2):
            layer = next(self._turn)
            began = self.stream.record()
            self.stream.run(lambda layer=layer: work(layer))
            ended = self.stream.record()
            ended.synchronize()
            spans.append(self.device.host_ns(ended) - self.device.host_ns(began))
        return float(np.median(spans[2:])) * 1e-9

    def pieces(self) -> dict[str, tuple[tuple[int, ...], Callable[[int], tuple[Callable[[int], object], float]]]]:
        """By component: the rows to measure, and for each the work and its units."""
        s = self.spec
        return {
            "rms_norm": (ROWS, lambda n: self._on(
                self.rows(n, s.hidden), lambda x, i: decoder.rms_norm(x, self.norm, s.norm_eps), s.hidden)),
            "qkv_proj": (ROWS, lambda n: self._on(self.rows(n, s.hidden), lambda x, i: x @ self.layers[i].wqkv.t(), s.hidden * s.qkv_dim)),
            "rope": (ROWS, self._rope),
            "attn_prefill": (PROMPTS, self._attn_prefill),
            "attn_decode": (CONTEXTS, self._attn_decode),
            "o_proj": (ROWS, lambda n: self._on(
                self.rows(n, s.attention_out_dim), lambda x, i: x @ self.layers[i].wo.t(), s.hidden * s.attention_out_dim)),
            "router": (ROWS, lambda n: self._on(
                self.rows(n, s.hidden), lambda x, i: decoder.route(x @ self.layers[i].router.t(), s.top_k, None), s.hidden * s.experts)),
            "dispatch": (ROWS, self._dispatch),
            "expert_ffn": (EXPERT_ROWS, self._expert_ffn),
            "combine": (ROWS, self._combine),
            "embed": (ROWS, lambda n: self._on(self.numbers(np.arange(n) % s.vocab), lambda ids, i: self.embed[ids], s.hidden)),
            "sample": (ROWS[:9], self._sample),
        }  # fmt: skip

    @staticmethod
    def _on(x: torch.Tensor, work: Callable[[torch.Tensor, int], object], units: float) -> tuple[Callable[[int], object], float]:
        return lambda i: work(x, i), units

    def _rope(self, n: int) -> tuple[Callable[[int], object], float]:
        s, qkv, positions = self.spec, self.rows(n, self.spec.qkv_dim), self.numbers(np.arange(n))
        return lambda i: decoder.rope(s, qkv, positions, self.table), (s.heads + s.kv_heads) * s.head_dim

    def _attn_prefill(self, prompt: int) -> tuple[Callable[[int], object], float]:
        s, count = self.spec, max(1, 256 // prompt)
        qkv, attn = self.rows(count * prompt, s.qkv_dim), self.rows(count * prompt, s.attention_out_dim)
        offsets = [prompt * k for k in range(count + 1)]
        return lambda i: decoder.attn_prefill(s, qkv, offsets, attn), count * s.heads * s.head_dim

    def _attn_decode(self, context: int, sequences: int = 16) -> tuple[Callable[[int], object], float]:
        s = self.spec
        k, v = (self.rows(sequences * context, s.kv_dim // 2) for _ in range(2))
        qkv, attn = self.rows(sequences, s.qkv_dim), self.rows(sequences, s.attention_out_dim)
        starts, before = self.numbers(np.arange(sequences) * context), self.numbers(np.full(sequences, context - 1))
        return lambda i: decoder.attn_decode(s, qkv, k, v, starts, before, context, attn), sequences * s.kv_dim

    def _routed(self, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.rows(n, self.spec.hidden)
        return x, *decoder.route(self.rows(n, self.spec.experts), self.spec.top_k, None)

    def _dispatch(self, n: int) -> tuple[Callable[[int], object], float]:
        x, ids, _ = self._routed(n)
        return lambda i: decoder.dispatch(self.spec, x, ids), self.spec.top_k * self.spec.hidden

    def _combine(self, n: int) -> tuple[Callable[[int], object], float]:
        x, ids, weights = self._routed(n)
        rows, _, back = decoder.dispatch(self.spec, x, ids)
        return lambda i: decoder.combine(rows, back, weights, x), self.spec.top_k * self.spec.hidden

    def _expert_ffn(self, n: int) -> tuple[Callable[[int], object], float]:
        s = self.spec
        x, offsets = self.rows(n * s.experts, s.hidden), self.numbers(np.arange(s.experts + 1) * n).int()
        return lambda i: grouped.expert_ffn(s, [self.experts[i]], x, offsets), s.experts * 3 * s.hidden * s.ffn

    def _sample(self, n: int) -> tuple[Callable[[int], object], float]:
        s, x, last = self.spec, self.rows(n, self.spec.hidden), self.numbers(np.arange(n))
        new = torch.empty(n, dtype=torch.int64, device=self.there)
        return lambda i: decoder.sample(s, self.norm, self.head, x, last, new), s.vocab * s.hidden


def measure(bench: Bench, only: Collection[str] = ()) -> Iterator[OpRate]:
    """Rows of the op table of the compute stream. only: these components; none named: all."""
    for op, (grid, make) in bench.pieces().items():
        if only and op not in only:
            continue
        made = [make(rows) for rows in grid]
        curve = tuple((float(rows), bench.seconds(work) / units) for rows, (work, units) in zip(grid, made, strict=True))
        yield OpRate(op=op, lane="gpu", curve=curve, bytes_scale=0.0, source="calibrated: solo, by the device's stamps")


def link(device: Device, stream: Stream, up: bool) -> tuple[float, float]:
    """(bytes/s, latency in s) between page-locked memory and the device, one way: the line through two sizes."""
    small, large = SIZES[4], SIZES[-1]
    here, there = device.pinned(large), device.allocate(large)

    def seconds(size: int) -> float:
        target, source = (there[:size], here[:size]) if up else (here[:size], there[:size])
        spans = []
        for _ in range(SAMPLES):
            began = stream.record()
            stream.run(copying([(target, source)]))
            ended = stream.record()
            ended.synchronize()
            spans.append(device.host_ns(ended) - device.host_ns(began))
        return float(np.median(spans)) * 1e-9

    a, b = seconds(small), seconds(large)
    rate = (large - small) / max(b - a, 1e-9)
    return rate, max(0.0, a - small / rate)


def pageable(device: Device, stream: Stream) -> float:
    """bytes/s from pageable memory to the device, through the staging ring."""
    size = 8 * SIZES[-1]
    here, there, staging = torch.ones(size, dtype=torch.uint8), device.allocate(size), Staging(device)
    rates = []
    for _ in range(3):
        began = stream.record()
        staging.up(stream, [(there, here)], Interrupt())
        ended = stream.record()
        ended.synchronize()
        rates.append(size / max(1e-9, (device.host_ns(ended) - device.host_ns(began)) * 1e-9))
    return float(np.median(rates))


def calibrate(open_device: Callable[[], Device], say: Say = lambda text: None, model: str = "tiny-mixtral") -> Machine:
    """Measure the GPU and its host, with kernels of the sizes of `model`. Nothing else should run meanwhile."""
    spec = models.load(model)
    weights = random_weights(spec, seed=0)
    device = open_device()
    ops: list[OpRate] = []
    bench = Bench(spec, weights, device)
    for row in measure(bench):
        say(f"{row.op} on the device")
        ops.append(row)
    say("links")
    streams = {name: device.stream(name) for name in ("h2d", "d2h")}
    rates = {name: link(device, stream, name == "h2d") for name, stream in streams.items()}
    staged = pageable(device, streams["h2d"])
    device.close()
    say("the host beside it")
    ops += _copy_rows(rates, staged)
    threads = max(1, (os.cpu_count() or 1) - 4)
    ops += [row.model_copy(update={"bytes_scale": 1.0}) for row in curves.measure(spec, weights, "cpu", threads, CPU_OPS)]
    draft = _machine(device, {name: rate for name, (rate, _) in rates.items()}, threads, tuple(ops))
    say("whole runs")
    return insitu.corrected(draft, spec, weights, say, PROBES, open_device)


def _copy_rows(rates: dict[str, tuple[float, float]], staged: float) -> list[OpRate]:
    rows = []
    for lane, (_, latency) in rates.items():
        rows.append(OpRate(op="*", lane=lane, latency_s=latency, source="calibrated: pinned copies"))
    share = min(1.0, staged / rates["h2d"][0])
    for op in ("layer_to_gpu", "kv_to_gpu", "hidden_to_gpu"):
        rows.append(OpRate(op=op, lane="h2d", latency_s=rates["h2d"][1], bytes_efficiency=share, source="calibrated: staged copies"))
    return [*rows, OpRate(op="*", lane="pin", source="calibrated: see the lane's link")]


def _machine(device: Device, links: dict[str, float], threads: int, ops: tuple[OpRate, ...]) -> Machine:
    calibrated = f"calibrated on {processor()}"
    _, memory = host.memory_bytes_per_s()
    pin_threads = min(PIN_THREADS, os.cpu_count() or 1)
    unit, gpu = compute_stream(device.blocks() or 1)
    resources = {
        "gpu": unit,
        "cores": Resource(kind="cores", capacity=host.cores(), source=f"{calibrated}: all cores at once against one alone"),
        "memory": Resource(kind="memory", capacity=memory, source=f"{calibrated}: most that readers and copiers move together"),
        **{f"link.{n}": Resource(kind="link", capacity=rate, source=f"{calibrated}: pinned copies") for n, rate in links.items()},
        "link.pin": Resource(kind="link", capacity=_pin_rate(pin_threads), source=f"{calibrated}: {pin_threads} threads"),
    }
    free, total = free_bytes(), device_bytes(device)
    memories = {
        "gpu": Memory(bytes=total, usable=0.9, source="the device's own; usable leaves room for its libraries"),
        "cpu": Memory(bytes=int(0.6 * free), source="six tenths of the memory that was free"),
        "pinned": Memory(bytes=int(0.2 * free), source="a fifth of the memory that was free"),
    }
    lanes = (
        gpu,
        Lane(name="cpu", kind="compute", memory="memory", cores="cores", threads=threads, home="cpu"),
        Lane(name="h2d", kind="copy", path=("link.h2d", "memory"), home="gpu"),
        Lane(name="d2h", kind="copy", path=("link.d2h", "memory"), home="cpu"),
        Lane(name="pin", kind="copy", path=("link.pin", "memory"), threads=pin_threads, home="pinned"),
    )
    name = device_name(device)
    return Machine(
        name=f"{name}@{platform.node() or 'this-computer'}", description=f"{name} beside {processor()}", rig=CUDA_RIG, clock="measured",
        resources=resources, memories=memories, lanes=lanes, ops=ops,
    )  # fmt: skip


def _pin_rate(threads: int) -> float:
    """bytes/s of one copy from pageable to other host memory by torch, as lane `pin` makes it."""
    from exec.calibration.measure import on_thread, solo

    source, target = torch.ones(256 << 20, dtype=torch.uint8), torch.ones(256 << 20, dtype=torch.uint8)
    return source.nbytes / on_thread(lambda: [solo(lambda: target.copy_(source))], threads)[0]


def device_bytes(device: Device) -> int:
    if device.torch_device.type == "cuda":
        return int(torch.cuda.get_device_properties(device.torch_device).total_memory)
    return 1 << 30


def device_name(device: Device) -> str:
    if device.torch_device.type != "cuda":
        return "stand-in"
    return name_of(torch.cuda.get_device_name(device.torch_device))


def name_of(gpu: str) -> str:
    """A GPU's name as a word: "NVIDIA H200" is h200."""
    return gpu.lower().replace("nvidia ", "").replace(" ", "-")
