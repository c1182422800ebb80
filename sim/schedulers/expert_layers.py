"""A layer of an expert-cache decode: where each expert is computed, and the tasks that do it."""

from __future__ import annotations

from collections.abc import Sequence

from sim import buffers
from sim.events import Profile
from sim.models.spec import ModelSpec
from sim.residency.grant import Grant
from sim.residency.placement import Missing, Times, split
from sim.schedulers.background import Flight
from sim.schedulers.caching import Caching
from sim.schedulers.expert_loads import Loads
from sim.schedulers.expert_tasks import CPU, D2H, GPU, H2D, NVME, Tasks
from sim.schedulers.sizes import Sizes
from sim.tasks import Command, Task, Time, Work


class Layers:
    """profile: solo times, once they are known. gate: the router call that the flow is at. Methods that take `out` append
    commands to it."""

    def __init__(self, model: ModelSpec, sizes: Sizes, caching: Caching, tasks: Tasks, loads: Loads) -> None:
        self.profile: Profile | None = None
        self.gate = -1
        self._model, self._sizes, self._caching, self._tasks, self._loads = model, sizes, caching, tasks, loads
        self._cpu_task = -1
        self._estimates: dict[tuple[str, tuple[int, ...]], Time] = {}

    def forward(self, layer: int) -> list[Command]:
        """From the input of `layer` to the next router call, or to the sampling."""
        n = len(self._tasks.rows)
        out: list[Command] = []
        hidden, qkv, attn = buffers.hidden(0), buffers.qkv(0), buffers.attn(0)
        if layer == self._sizes.layers:
            out.append(self._tasks.compute(Work("sample", n, n), reads=(hidden,), writes=(buffers.token(0),), notify=True))
            return out
        self._tasks.layer = layer
        seen = self._sizes.seen(layer)
        entries = [r.prompt_tokens + made + 1 for r, made in self._tasks.rows]
        context = sum(entries) if seen is None else sum(min(e, seen) for e in entries)
        kv = buffers.kv_gpu(layer, 0)
        out.append(self._tasks.compute(Work("pre_attn", n, n), reads=(hidden,), writes=(qkv,)))
        out.append(self._tasks.compute(Work("attn_decode", n, n, context), reads=(qkv, kv), writes=(attn, kv)))
        if not self._sizes.routed(layer):
            out.append(self._tasks.compute(Work("post_attn", n, n), reads=(attn, hidden), writes=(hidden,)))
            return out + self.forward(layer + 1)
        gate = Work("gate", n, n, experts=self._model.experts)
        out.append(self._tasks.compute(gate, reads=(attn, hidden), writes=(hidden, buffers.routed(0)), notify=True))
        return out

    def on_cpu(self, hits: list[int], others: Sequence[int], rows: Sequence[int], base: int) -> frozenset[int]:
        """Which of the experts that are not here the CPU computes."""
        if self._caching.work == "gpu" or not others:
            return frozenset()
        if self._caching.work == "cpu-expert":
            return frozenset(others)
        host = self._loads.host
        disk = self._estimate("read_expert", ()) if host is not None else 0
        queue, missing = 0, []
        for k in others:
            gone = host is not None and not host.here(k)
            queue += disk if gone else 0
            missing.append(Missing(k, rows[k - base], queue if gone else 0))
        n = len(self._tasks.rows)
        back = self._estimate("offload_normed", (n,)) + self._estimate("load_partial", (n,))
        load = self._estimate("load_expert", ())
        times = Times(load, lambda r: self._estimate("experts", r), lambda r: self._estimate("cpu_experts", r), back)
        return split(tuple(sorted(hits, reverse=True)), missing, times)

    def run_on_gpu(
        self, grant: Grant, elsewhere: frozenset[int], rows: Sequence[int], reads: dict[int, int], out: list[Command]
    ) -> None:
        """Experts that are here at once, then those that were on their way, then the others, each as it arrives."""
        late = [k for k in grant.late if k not in elsewhere]
        if grant.waves:
            out += self._loads.make_way(but=late)
        arriving = self._loads.claim(late, reads, out)
        if grant.hits or self._model.shared_experts:
            self._experts([(k, grant.slots[k]) for k in grant.hits], rows, (), out, shared=True)
        for k, slot, number in arriving:
            self._experts([(k, slot)], rows, (number,), out)
        for wave in grant.waves:
            loads = [(load, self._loads.demand(Flight(load.key, load.slot), reads, out)) for load in wave]
            for load, number in loads:
                self._experts([(load.key, load.slot)], rows, (number,), out)

    def _experts(
        self, held: Sequence[tuple[int, int]], rows: Sequence[int], deps: tuple[int, ...], out: list[Command], shared: bool = False
    ) -> None:
        """One task for experts (key, slot) on the GPU."""
        counts = tuple(sorted((rows[k % self._model.experts] for k, _ in held), reverse=True))
        work = Work("experts", len(self._tasks.rows) if shared and self._model.shared_experts else 0, expert_tokens=counts)
        reads = (buffers.routed(0), *(buffers.expert(s) for _, s in held))
        task = self._tasks.compute(work, reads=reads, writes=(buffers.moe(0),), deps=deps)
        self._loads.read_by(task.number, (s for _, s in held))
        out.append(task)

    def run_on_cpu(self, keys: Sequence[int], rows: Sequence[int], reads: dict[int, int], out: list[Command]) -> None:
        n, counts = len(self._tasks.rows), tuple(sorted((rows[k % self._model.experts] for k in keys), reverse=True))
        down = Work("offload_normed", n, n, bytes=n * self._sizes.hidden_bytes)
        offload = self._tasks.make(down, D2H, (self.gate,), reads=(buffers.routed(0),), writes=(buffers.routed_host(0),))
        there = tuple(b for k in keys for b in self._loads.host_buffers(k))
        task = self._tasks.make(
            Work("cpu_experts", expert_tokens=counts), CPU, (offload.number, *(reads[k] for k in keys if k in reads)),
            reads=(buffers.routed_host(0), *there), writes=(buffers.moe_host(0),), notify=True,
        )  # fmt: skip
        out += [offload, task]
        self._cpu_task = task.number

    def returned(self) -> list[Command]:
        """The CPU is done: its results go to the GPU before anything else on the link."""
        n = len(self._tasks.rows)
        up = Work("load_partial", n, n, bytes=n * self._sizes.hidden_bytes)
        out = self._loads.make_way()
        task = self._tasks.make(up, H2D, (self._cpu_task,), reads=(buffers.moe_host(0),), writes=(buffers.moe_part(0),))
        out.append(task)
        return [*out, *self.combine_and_go_on((task.number,)), *self._loads.fill_link()]

    def combine_and_go_on(self, deps: tuple[int, ...] = ()) -> list[Command]:
        """deps: the load of what the CPU made, if it made anything."""
        n, hidden = len(self._tasks.rows), buffers.hidden(0)
        made = (buffers.moe(0), buffers.moe_part(0)) if deps else (buffers.moe(0),)
        combine = self._tasks.compute(Work("combine", n, n), reads=(*made, hidden), writes=(hidden,), deps=deps)
        return [combine, *self.forward(self._tasks.layer + 1)]

    def _estimate(self, op: str, rows: tuple[int, ...]) -> Time:
        """Solo time of an op; rows: of each expert, or the tokens of a copy."""
        key = (op, rows)
        if key not in self._estimates:
            assert self.profile is not None
            lane = {"experts": GPU, "cpu_experts": CPU, "offload_normed": D2H, "read_expert": NVME}.get(op, H2D)
            size = self._model.expert_bytes if op in ("load_expert", "read_expert") else sum(rows) * self._sizes.hidden_bytes
            work = Work(op, expert_tokens=rows) if lane in (GPU, CPU) else Work(op, bytes=size)
            self._estimates[key] = self.profile.estimate(Task(0, work, lane))
        return self._estimates[key]
