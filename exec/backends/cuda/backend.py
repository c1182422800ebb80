"""CudaBackend: every op of the schedules on the streams of a device, and on the host threads beside it.

As `exec.backends.cpu`, but that a task on a stream is only enqueued: what it must wait for, its dependencies
on other lanes, units of pools and memory that others give up, are events in its stream. The lanes `gpu`,
`h2d` and `d2h` are streams; `cpu` (attention over the host's cache) and `pin` are host threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from exec.backends.caches import KVCache
from exec.backends.copies import KV_USES
from exec.backends.cpu import Needed
from exec.backends.cuda.caches import DeviceKVCache, EnqueuedSequences
from exec.backends.cuda.call import Call, Work
from exec.backends.cuda.compute import Compute, Placed
from exec.backends.cuda.copies import StreamCopies
from exec.backends.cuda.decoder import DeviceLayer, rope_table
from exec.backends.cuda.device import Device, Token, wait_on
from exec.backends.cuda.ends import Ends, StreamPools
from exec.backends.cuda.engine import Later
from exec.backends.cuda.experts import DeviceExperts, dense
from exec.backends.cuda.fused import StreamLayers
from exec.backends.cuda.graphs import Graphs, Step, enqueue
from exec.backends.cuda.host import HostAttention
from exec.backends.cuda.memory import StreamArena, StreamBuffers, sized
from exec.backends.cuda.numbers import Numbers
from exec.backends.cuda.staging import CHUNK_BYTES, Staging
from exec.backends.routing import RoutingRecorder
from exec.links import sharpen_sleep
from exec.products import set_threads
from exec.runtime import Interrupt, Record
from exec.weights import Weights
from sim.errors import UserError
from sim.events import Request
from sim.machines.schema import Lane, Machine
from sim.models.spec import ModelSpec
from traces.routing import RoutingIndex

COPY_THREADS = 4
"""Threads of a copy lane's own work on the host, where the computer has four times as many cores."""

STREAMS = ("gpu", "h2d", "d2h")
NUMBERS_BYTES = (4 << 20, 64 << 20)
"""Least and most bytes of the ring that positions and token ids go through."""


class CudaBackend:
    """Ops of one run of `model` on `device`. Implements `exec.runtime.Backend` for `engine.StreamEngine`.

    Parameters beyond those of `CpuBackend`: graphs replays compute tasks that repeat as CUDA graphs. The
    device's budget is hard: arenas and all that torch allocates beside them stay below it together.

    Raises UserError where a budget is too small, the model is none that the executor runs, or a link is
    paced: a device's links are as fast as they are.
    """

    pools: StreamPools

    def __init__(
        self, model: ModelSpec, weights: Weights, machine: Machine, needed: Needed, requests: Sequence[Request],
        prompts: Sequence[Sequence[int]], *, device: Device, graphs: bool = False, lengths: Sequence[int] | None = None,
        eos: Collection[int] = (), record_routing: bool = False, replay_routing: RoutingIndex | None = None, keep_logits: bool = False,
        poison: bool = False,
    ) -> None:  # fmt: skip
        _check(model, machine)
        self.model, self.device = model, device
        self.ends = Ends(device)
        self._fused = False
        self.sequences = EnqueuedSequences(requests, prompts, model.vocab, lengths=lengths, eos=eos)
        self.recorder = RoutingRecorder() if record_routing else None
        self.logits: dict[int, list[Any]] | None = {r.request_id: [] for r in requests} if keep_logits else None
        self._threads = {lane.name: max(1, lane.threads) for lane in machine.lanes}
        self.arenas = _arenas(machine, needed, device, poison)
        self._streams = {name: device.stream(name) for name in STREAMS}
        self._buffers = StreamBuffers(self.arenas)
        gpu = self._streams["gpu"]
        placed = self._place(weights, needed)
        on_host, self._cache = self._make_cache(needed)
        numbers = Numbers(device, gpu, _numbers_bytes(model, prompts))
        self.graphs = Graphs(device, gpu, numbers) if graphs else None
        self._enqueue = self.graphs.run if self.graphs is not None else lambda step: enqueue(step, gpu, numbers)
        self.layers = StreamLayers(device, gpu, placed.experts.dtype, self._threads["gpu"])
        self._compute = Compute(
            model, device, placed, self._buffers, None if on_host else self._cache, self.sequences, self.recorder, replay_routing,
            self.logits, self._cache.ended, self.layers,
        )  # fmt: skip
        self._host = HostAttention(model, self._buffers, self._cache if on_host else None, self._threads.get("cpu", 1))
        staging = {name: Staging(device, _chunk_bytes(model, prompts)) for name in ("h2d", "d2h")}
        copies = StreamCopies(model, staging, self._buffers, placed.experts, self._cache if on_host else None, self.sequences)
        self._ops: dict[str, Callable[[Call], Work]] = {**self._compute.ops(), **copies.ops()}

    def _place(self, weights: Weights, needed: Needed) -> Placed:
        gpu = self.arenas["gpu"]
        embed = dense(gpu, "embed", weights.embed)
        head = embed if weights.lm_head is weights.embed else dense(gpu, "lm_head", weights.lm_head)
        layers = [
            DeviceLayer(*(dense(gpu, f"layer.{i}.{k}", a) for k, a in enumerate(layer.arrays()))) for i, layer in enumerate(weights.layers)
        ]
        staged = needed.get("pinned", {}).get("pages", 0) > 0
        experts = DeviceExperts(
            weights.experts, gpu, self.arenas["cpu"], self.arenas["pinned"], needed["gpu"].get("weight_buffer", 0) // 2, staged
        )
        longest = max(self.sequences.longest, 1)
        table = rope_table(self.model.rope_theta, self.model.head_dim, longest, self.device.torch_device)
        tokens = gpu.take("tokens", len(self.sequences.slot), torch.int64)
        return Placed(embed, head, dense(gpu, "final_norm", weights.final_norm), layers, experts, table, tokens)

    def _make_cache(self, needed: Needed) -> tuple[bool, KVCache]:
        """(whether it lives on the host, the cache): as large as the schedule says."""
        model, entry = self.model, self.model.kv_bytes_per_token_layer
        size = model.layers, model.kv_dim // 2
        if needed["cpu"].get("kv", 0):
            cache = KVCache(self.arenas["cpu"], *size, needed["cpu"]["kv"] // entry)  # type: ignore[arg-type]
            cache.k, cache.v = cache.k.numpy(), cache.v.numpy()  # type: ignore[attr-defined]
            return True, cache
        there = DeviceKVCache(self.arenas["gpu"], *size, needed["gpu"].get("kv", 0) // entry)  # type: ignore[arg-type]
        there.run = self._streams["gpu"].run
        return False, there

    # Backend ------------------------------------------------------------------------------------

    def enter_lane(self, lane: Lane) -> None:
        """Make ready what the lane's thread will run."""
        if lane.name == "cpu":
            sharpen_sleep()
            set_threads(self._threads["cpu"])
            self._host.warm_up()
        elif lane.name != "gpu":
            # They fill pinned memory, and a thread copies no faster than about 10 GB/s.
            torch.set_num_threads(max(self._threads[lane.name], min(COPY_THREADS, (os.cpu_count() or 1) // 4)))
        else:
            self._streams["gpu"].run(self._compute.warm_up)
            self._streams["gpu"].record().synchronize()

    def run(self, task: Record, interrupt: Interrupt) -> Later | None:
        call = Call(task, interrupt, self.ends.of(task.deps) + self.pools.waits(task))
        try:
            return self._run(call)
        except torch.OutOfMemoryError as e:
            raise UserError(
                f"memory 'gpu': task {task.number} ({task.work.op}) has no room for its temporaries within the budget of "
                f"{self.arenas['gpu'].budget_bytes:,} bytes ({str(e).split('.')[0]}); lower --microbatch, or raise memories.gpu"
            ) from None

    def _run(self, call: Call) -> Later | None:
        task = call.task
        stream = self._streams.get(task.lane or "")
        op = self._host.attend if stream is None and task.work.op == "attn_decode" else self._ops[task.work.op]
        work = op(call)
        wait_on(stream, call.tokens)
        if stream is None:
            assert not isinstance(work, Step), f"task {task.number} ({task.work.op}) runs on lane gpu, not {task.lane}"
            start = time.perf_counter_ns()
            work(None)
            self.ends.on_host(task.number, start, time.perf_counter_ns())
            self._over(call, None)
            return None
        started = stream.record()
        if isinstance(work, Step):
            assert task.lane == "gpu", f"task {task.number} ({task.work.op}) runs on lane gpu, not {task.lane}"
            self._enqueue(work)
        else:
            work(stream)
        ended = Token(stream, stream.record())
        if call.done_on_host:
            ended.event.synchronize()
            self.ends.on_host(task.number, self.device.host_ns(started), time.perf_counter_ns())
        else:
            self.ends.enqueued(task.number, started, ended)
        self._over(call, ended)
        return Later(ended.event, call.later) if call.later is not None else None

    def _over(self, call: Call, token: Token | None) -> None:
        """Note the task's use of its buffers, and drop those that it used up."""
        if token is not None and not call.done_on_host:
            self._buffers.used((*call.task.reads, *call.task.writes), token)
        for name in call.dropped:
            self._buffers.drop(name)
        for name, use in call.uses:
            self._buffers.used_for(name, use, KV_USES)

    def peak_bytes(self) -> dict[str, int]:
        """Most bytes that were taken of each memory at a time, without the temporaries of kernels."""
        return {name: arena.peak_bytes for name, arena in self.arenas.items()}

    def clock_offsets(self) -> dict[str, dict[str, float]]:
        """The clock that kernels stamp tiles with, against the host's, by lane."""
        return {"gpu": self.layers.clock.line().offset()} if self._fused else {}

    def warm_up_fused(self) -> None:
        """Make ready to run bodies of tasks. Waits for the device."""
        self._fused = True
        self.layers.warm_up(self.model)

    def read_clock(self) -> None:
        """Enqueue a reading of the clock that stamps are by, so that they can be told."""
        if self._fused:
            self.layers.clock.read()

    def close(self) -> None:
        self.read_clock()
        self.device.close()


def _check(model: ModelSpec, machine: Machine) -> None:
    if not model.executable:
        raise UserError(f"--model {model.name}: {model.not_executable_because}; it can be simulated")
    if model.dtype != "fp32":
        raise UserError(f"--model {model.name}: sizes are for {model.dtype}; the executor keeps activations in fp32 (replace dtype)")
    for lane in machine.lanes:
        if lane.paced_bytes_per_s:
            raise UserError(
                f"machine {machine.name}: lane {lane.name!r} is paced; the links of --device cuda are native: calibrate with --device cuda"
            )
    for name in ("gpu", "cpu"):
        if name not in machine.memories:
            raise UserError(f"machine {machine.name}: memories has no {name!r}; the executor needs gpu and cpu")


def _arenas(machine: Machine, needed: Needed, device: Device, poison: bool) -> dict[str, StreamArena]:
    """The device's budget without what kernels need for their temporaries is one allocation; the host's are as
    large as the plan says."""
    memories = machine.memories
    gpu = memories["gpu"].budget_bytes
    device.limit(gpu)
    workspace = needed["gpu"].get("workspace", 0)
    arenas = {"gpu": StreamArena("gpu", gpu - workspace, device.allocate(gpu - workspace), poison=poison)}
    for name, allocate in (("cpu", _pageable), ("pinned", device.pinned)):
        plan = {k: v for k, v in needed.get(name, {}).items() if k != "weights"}
        budget = memories[name if name in memories else "cpu"].budget_bytes
        arenas[name] = StreamArena(name, budget, allocate(sized(name, budget, sum(plan.values()))), poison=poison)
    return arenas


def _pageable(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


def _numbers_bytes(model: ModelSpec, prompts: Sequence[Sequence[int]]) -> int:
    """A prefill uploads a token id and a position a row, and the experts where a trace forces them."""
    least, most = NUMBERS_BYTES
    return min(most, max(least, 2 * 8 * (3 + model.top_k) * sum(map(len, prompts))))


def _chunk_bytes(model: ModelSpec, prompts: Sequence[Sequence[int]]) -> int:
    """Chunks hold at least K and V of the longest prompt: sequences enter the cache whole."""
    return max(CHUNK_BYTES, 2 * model.kv_dim * 4 * max(map(len, prompts), default=1))
