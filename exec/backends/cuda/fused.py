"""Fused layers on a stream: the body of a task as one launch, its stamps brought to the host behind it.

On a GPU `kernels.fused_moe.gpu` runs it; on the stand-in the form for this computer's cores does, or, in
Numba's CUDA simulator, that of the GPU again. Nothing waits for the stamps: they are copied to page-locked memory
behind the kernel and read when the run has ended.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from exec.backends.cuda.clock import KernelClock
from exec.backends.cuda.decoder import DeviceLayer, rms_norm
from exec.backends.cuda.device import Device, Stream
from exec.backends.cuda.grouped import numba_stream
from exec.fused import program_of, tiles_in
from exec.runtime.bodies import Stamps
from kernels.cuda.jit import simulated
from kernels.fused_moe.gpu import DeviceLaunch
from kernels.fused_moe.host import HostLaunch, Layer
from kernels.fused_moe.tiles import Shape, Tiles
from sim.models.spec import ModelSpec
from sim.plan import Plan
from sim.schedulers.ticket import body_of, tiles_of

ROOM_BYTES = 4 << 20
"""Page-locked memory that is taken at a time for stamps."""

ELEMENTS = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}
TORCH = {np.dtype(v): k for k, v in ELEMENTS.items()} | {np.dtype(n): getattr(torch, n) for n in ("int16", "int32", "int64")}

Kept = tuple[torch.Tensor, torch.Tensor]
"""Page-locked: stamps [n, 2] int64 by the kernel's clock, and which tiles were surplus [n] bool."""

Launch = Callable[[Layer, Kept], None]
"""Enqueues a layer of tensors, and the copy of its stamps."""


class StreamLayers:
    """Launches by body, for weights of one dtype, on `stream`. threads: blocks where the device states none."""

    def __init__(self, device: Device, stream: Stream, dtype: torch.dtype, threads: int) -> None:
        self._device, self._stream, self._dtype = device, stream, dtype
        self._blocks = device.blocks() or threads
        self._launches: dict[Plan, Launch | None] = {}
        self._room = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self.clock = KernelClock(device, stream)

    def launch(self, body: Plan, shape: Shape) -> Launch | None:
        """What runs `body`, the same each time; None: its kernel does not do these sizes, this dtype, or is not installed."""
        if body not in self._launches:
            self._launches[body] = self._make(tiles_in(body, shape), program_of(body))
        return self._launches[body]

    def keep(self, body: Plan) -> Kept:
        """Where the stamps of one launch go."""
        tickets = int((body.lane >= 0).sum())
        nbytes = -(-17 * tickets // 8) * 8
        if self._used + nbytes > len(self._room):
            self._room, self._used = self._device.pinned(max(ROOM_BYTES, nbytes)), 0
        mine = self._room[self._used : self._used + nbytes]
        self._used += nbytes
        return mine[: 16 * tickets].view(torch.int64).view(tickets, 2), mine[16 * tickets : 17 * tickets].view(torch.bool)

    def on_host_clock(self, stamped: Sequence[tuple[int, Plan, Stamps]]) -> list[tuple[int, Plan, Stamps]]:
        """Stamps of tasks that have ended, by `time.perf_counter_ns`."""
        if not stamped:
            return []
        to = self.clock.line().host_ns
        return [(number, body, Stamps(to(start), to(end), surplus)) for number, body, (start, end, surplus) in stamped]

    def warm_up(self, model: ModelSpec) -> None:
        """Both forms of the kernel over a small layer, and the clock's first reading. Waits for them."""
        small = replace(model, hidden=8, ffn=8, experts=2, top_k=1)
        there = self._device.torch_device
        for tokens in (1, 17):
            body = body_of(tiles_of(small, tokens, blocks=self._blocks))
            launch = self.launch(body, Shape(tokens, 8, 8, 2, 1))
            x, gate, flat = (torch.zeros(s, dtype=self._dtype, device=there) for s in ((tokens, 8), (2, 8), (2 * 3 * 64,)))
            ids, weights = (torch.zeros((tokens, 1), dtype=d, device=there) for d in (torch.int16, torch.float32))
            if launch is not None:
                self._stream.run(_running(launch, Layer(x, gate, flat, x, torch.empty_like(x), ids, weights), self.keep(body)))
        self._device.synchronize()
        self.clock.read()
        self._device.synchronize()

    def _make(self, tiles: Tiles, program: np.ndarray) -> Launch | None:
        there = self._device.torch_device
        if there.type != "cuda" and not simulated():
            return _on_host(HostLaunch(tiles, program, self._blocks)) if self._dtype == torch.float32 else None
        if self._dtype not in ELEMENTS or importlib.util.find_spec("numba_cuda") is None:
            return None
        place = (lambda a: torch.from_numpy(a).to(there)) if there.type == "cuda" else np.asarray
        try:
            made = DeviceLaunch(tiles, program, self._blocks, ELEMENTS[self._dtype], place, own=False)
        except ValueError:
            return None
        return _on_gpu(made, there) if there.type == "cuda" else _simulated(made)


def stamps_in(kept: Kept) -> Stamps:
    """By the kernel's clock; to be read when the task has ended."""
    start, end = kept[0].numpy().T
    return Stamps(start, end, kept[1].numpy())


def post_attn(
    spec: Any, layer: DeviceLayer, experts: torch.Tensor, attn: torch.Tensor, hidden: torch.Tensor, launch: Launch, kept: Kept
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `decoder.post_attn`, from the router on in one launch. Over 16-bit experts the router's weights and what goes
    into and comes out of the layer have their dtype too; the residual stays float32."""
    hidden.addmm_(attn, layer.wo.t())
    x, gate, out = rms_norm(hidden, layer.ffn_norm, spec.norm_eps).to(experts.dtype), layer.router.to(experts.dtype), hidden
    ids, weights = (torch.empty((len(hidden), spec.top_k), dtype=d, device=hidden.device) for d in (torch.int16, torch.float32))
    if experts.dtype != hidden.dtype:
        out = torch.zeros_like(x)
    launch(Layer(x, gate, experts, out, out, ids, weights), kept)
    if out is not hidden:
        hidden.add_(out)
    return ids.long(), weights


def _on_gpu(made: DeviceLaunch, there: torch.device) -> Launch:
    """What a launch needs for itself alone are temporaries of the stream."""

    def run(layer: Layer, kept: Kept) -> None:
        state = made.fresh(lambda shape, dtype: torch.empty(shape, dtype=TORCH[np.dtype(dtype)], device=there))
        made(layer, numba_stream(), state)
        kept[0].copy_(state.stamps, non_blocking=True)
        kept[1].copy_(state.ran_on < 0, non_blocking=True)

    return run


def _simulated(made: DeviceLaunch) -> Launch:
    def run(layer: Layer, kept: Kept) -> None:
        state = made.fresh(np.empty)
        made(Layer(*(_array(t) for t in layer)), state=state)
        _keep(kept, state.stamps, state.ran_on)

    return run


def _on_host(made: HostLaunch) -> Launch:
    def run(layer: Layer, kept: Kept) -> None:
        made(Layer(*(_array(t) for t in layer)))
        _keep(kept, made.state.stamps, made.state.ran_on)

    return run


def _array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _keep(kept: Kept, stamps: np.ndarray, ran_on: np.ndarray) -> None:
    kept[0].numpy()[:], kept[1].numpy()[:] = stamps, ran_on < 0


def _running(launch: Launch, layer: Layer, kept: Kept) -> Callable[[], None]:
    return lambda: launch(layer, kept)
