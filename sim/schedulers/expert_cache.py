"""expert-cache: decode with a share of the experts on the GPU; the rest comes when the router asks for it.

After each router call the scheduler learns which experts the layer's tokens want (`Finished.result.experts`), and only
then decides: what to fetch over the link, what to compute on the CPU, what gives way, what to fetch ahead. Slots and
victims are the table's (`sim.residency`), times the profile's.

| op | lane | work | does | buffers (reads -> writes) |
|---|---|---|---|---|
| embed, pre_attn, attn_decode, sample | gpu | as elsewhere | the KV cache is on the GPU | |
| post_attn | gpu | as elsewhere | a leading dense layer | |
| gate | gpu | tokens, sequences, experts = E | O projection, residual, norm, router (notify) | attn, hidden -> hidden, routed |
| read_expert | nvme | bytes; layer, page = expert | from a file to the host's memory | -> expert_host.S |
| load_expert | h2d | bytes; layer, page = expert | or the rest of one that was stopped half-way | expert_host.S -> expert.s |
| experts | gpu | expert_tokens; tokens of shared experts | the experts in the slots that it reads | routed, expert.s... -> moe |
| offload_normed | d2h | tokens, bytes | rows for the CPU | routed -> routed_host |
| cpu_experts | cpu | expert_tokens | experts where their weights are (notify) | routed_host, expert_host.S... -> moe_host |
| load_partial | h2d | tokens, bytes | what the CPU made of them | moe_host -> moe_part |
| combine | gpu | tokens | weighted sum, in the order of the routes | moe, moe_part, hidden -> hidden |

An expert's rows of `moe` are its own, so nothing in a sum depends on who was computed when.
Loads that nobody waits for (guesses of the prefetcher, promotions of experts that the CPU computes) go through
`Background`: a demand load cancels them, and what is left of them is handed out again behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import ClassVar

from sim import buffers
from sim.events import Arrived, Event, Failed, Finished, Profile, Request, Started
from sim.models.spec import ModelSpec
from sim.residency.governor import Governor
from sim.residency.placement import Missing, Times, split
from sim.residency.prefetch import PREDICTORS
from sim.residency.table import Grant, Load, Refusal
from sim.schedulers.background import Background, Flight
from sim.schedulers.caching import Caching, Served
from sim.schedulers.policy import Policy
from sim.schedulers.sizes import sizes
from sim.tasks import Command, Task, Time, Work

GPU, H2D, D2H, CPU, NVME = "gpu", "h2d", "d2h", "cpu", "nvme"
PROMOTIONS = 4
"""Promotions on their way at a time; more would be of yesterday's experts when they arrive."""


class ExpertCache:
    """Decodes `policy.batch` sequences at a time, in one micro-batch; who ends makes place for the next in line. Prompts are
    taken to be in the cache already.

    served: what has happened so far. stopped: why it gave up; empty while it goes on.
    """

    lanes: ClassVar[tuple[str, ...]] = (GPU, H2D, D2H, CPU)
    pools: ClassVar[dict[str, int]] = {}

    def __init__(self, model: ModelSpec, policy: Policy, caching: Caching, *, seed: int = 0, steps: int | None = None) -> None:
        """steps: decode steps at most."""
        self.model, self.policy, self.caching, self.seed = model, policy, caching, seed
        self.sizes = sizes(model, policy)
        self.table = caching.table(model)
        self.host = caching.host_table(model)
        self.governor = Governor() if caching.governed and caching.prefetch != "none" else None
        self.served = Served()
        self.stopped = ""
        self._predictor = PREDICTORS[caching.prefetch](range(model.dense_layers, model.layers), model.experts)
        self._limit = steps
        self._link = Background(self._fetch_ahead)
        self._disk = Background(self._read_ahead)
        self._next = 0
        self._waiting: deque[Request] = deque()
        self._closed = False
        self._live: list[tuple[Request, int] | None] = [None] * policy.batch
        """Request and tokens made of each slot."""
        self._running = False
        self._awaited: dict[int, str] = {}
        """Tasks whose end the flow waits for, and their op."""
        self._layer = self._gate = self._cpu_task = -1
        self._last = -1
        """Last task on the GPU."""
        self._reader: dict[int, int] = {}
        """Last task that read each slot."""
        self._reads: dict[int, int] = {}
        """Last read of each key that an event waited for."""
        self._pinned = -1
        self._host_pinned = False
        self._estimates: dict[tuple[str, tuple[int, ...]], Time] = {}
        self._profile: Profile | None = None

    # Events -------------------------------------------------------------------------------------

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if self.stopped:
            return ()
        if isinstance(event, Started):
            self._profile = event.profile
        elif isinstance(event, Arrived):
            self._waiting.append(event.request)
            self._closed = self._closed or event.last
            if not self._running and (self._closed or len(self._waiting) >= self.policy.batch):
                return self._begin_step()
        elif isinstance(event, Finished):
            return self._finished(now, event)
        elif isinstance(event, Failed):
            return self._failed(event)
        return ()

    def _finished(self, now: Time, event: Finished) -> Sequence[Command]:
        op = self._awaited.pop(event.task, "")
        if op == "gate":
            return self._routed(event)
        if op == "cpu_experts":
            return self._returned()
        if op == "sample":
            return self._sampled(now, event)
        return self._landed(event.task)

    def _landed(self, number: int) -> Sequence[Command]:
        if (flight := self._link.ended(number)) is not None:
            self.served.moved += flight.left
            self.served.ahead += flight.left
            self._let_go(self._link, flight)
            if flight.wanted:
                self.table.landed(flight.key)
            return self._link.fill()
        flight = self._disk.ended(number)
        assert flight is not None, f"task {number} is none of this scheduler's"
        self.served.read += flight.left
        assert self.host is not None
        if not flight.wanted:
            return self._disk.fill()
        self.host.landed(flight.key)
        return [*self._guess(flight.key), *self._link.fill(), *self._disk.fill()]

    def _failed(self, event: Failed) -> Sequence[Command]:
        for background, table in ((self._link, self.table), (self._disk, self.host)):
            found = background.failed(event.task, event.fraction_done)
            if found is None:
                continue
            flight, copied, cancelled = found
            self._let_go(background, flight)
            if background is self._link:
                self.served.moved += copied
                self.served.ahead += copied
            else:
                self.served.read += copied
            if flight.wanted and not cancelled:
                assert table is not None
                table.lost(flight.key)  # it really failed, and nobody waited for it
            return background.fill()
        self.stopped = f"task {event.task}: {event.reason}"
        return ()

    def _let_go(self, background: Background, flight: Flight) -> None:
        """A copy from the host's memory is over: its source may give way."""
        if background is self._link and self.host is not None:
            self.host.let_go(flight.key)

    # Steps --------------------------------------------------------------------------------------

    @property
    def _rows(self) -> list[tuple[Request, int]]:
        return [row for row in self._live if row is not None]

    def _begin_step(self) -> Sequence[Command]:
        for j, row in enumerate(self._live):
            if row is None and self._waiting:
                self._live[j] = (self._waiting.popleft(), 0)
        self._running = bool(self._rows) and self.served.steps != self._limit
        if not self._running:
            return ()
        n = len(self._rows)
        out: list[Command] = [self._compute(Work("embed", n, n), reads=(buffers.token(0),), writes=(buffers.hidden(0),))]
        return out + self._forward(0)

    def _forward(self, layer: int) -> list[Command]:
        """From the input of `layer` to the next router call, or to the sampling."""
        n = len(self._rows)
        out: list[Command] = []
        hidden, qkv, attn = buffers.hidden(0), buffers.qkv(0), buffers.attn(0)
        if layer == self.sizes.layers:
            out.append(self._compute(Work("sample", n, n), reads=(hidden,), writes=(buffers.token(0),), notify=True))
            return out
        self._layer = layer
        seen = self.sizes.seen(layer)
        entries = [r.prompt_tokens + made + 1 for r, made in self._rows]
        context = sum(entries) if seen is None else sum(min(e, seen) for e in entries)
        kv = buffers.kv_gpu(layer, 0)
        out.append(self._compute(Work("pre_attn", n, n), reads=(hidden,), writes=(qkv,)))
        out.append(self._compute(Work("attn_decode", n, n, context), reads=(qkv, kv), writes=(attn, kv)))
        if not self.sizes.routed(layer):
            out.append(self._compute(Work("post_attn", n, n), reads=(attn, hidden), writes=(hidden,)))
            return out + self._forward(layer + 1)
        gate = Work("gate", n, n, experts=self.model.experts)
        out.append(self._compute(gate, reads=(attn, hidden), writes=(hidden, buffers.routed(0)), notify=True))
        return out

    def _sampled(self, now: Time, event: Finished) -> Sequence[Command]:
        rows = self._rows
        self.served.tokens += len(rows)
        self.served.steps += 1
        if self.governor is not None:
            self.governor.ended(now, len(rows))
        for j, row in enumerate(self._live):
            if row is not None:
                over = row[0].request_id in event.result.ended or row[1] + 1 >= row[0].max_output_tokens
                self._live[j] = None if over else (row[0], row[1] + 1)
        if ended := len(rows) - len(self._rows):
            self.table.evictor.ended(ended / len(rows))
            self._predictor.ended(ended / len(rows))
        return self._begin_step()

    # A layer ------------------------------------------------------------------------------------

    def _routed(self, event: Finished) -> Sequence[Command]:
        rows = event.result.experts
        layer, self._gate = self._layer, event.task
        assert sum(rows) == self.model.top_k * len(self._rows), f"layer {layer}: routes {rows} for {len(self._rows)} tokens"
        self._release()
        asked = [e for e, n in enumerate(rows) if n]
        hits, late, missing = self.table.look(layer, asked)
        base = layer * self.model.experts
        elsewhere = self._on_cpu([rows[k - base] for k in hits], [*late, *missing], rows, base)
        grant = self.table.need(layer, asked, elsewhere, max(0, PROMOTIONS - len(self._link)))
        assert isinstance(grant, Grant), grant
        self._pinned = layer
        self._count(grant, len(elsewhere))
        out = self._drop(grant)
        reads = self._read([*grant.missed, *late], out)
        self._run_on_gpu(grant, elsewhere, rows, reads, out)
        if elsewhere:
            self._run_on_cpu(sorted(elsewhere), rows, reads, out)
        else:
            out += self._combine_and_go_on()
        for load in grant.promotions:
            self._link.add(load.key, load.slot, first=True)
        self._prefetch(layer, asked, event)
        out += self._link.fill()
        out += self._disk.fill()
        return out

    def _release(self) -> None:
        """The layer before has been computed: its experts may go."""
        if self._pinned >= 0:
            self.table.release(self._pinned)
            if self._host_pinned:
                assert self.host is not None
                self.host.release(self._pinned)
        self._pinned, self._host_pinned = -1, False

    def _count(self, grant: Grant, on_cpu: int) -> None:
        s = self.served
        s.events += 1
        s.asked += len(grant.hits) + len(grant.late) + len(grant.missed)
        s.hits += len(grant.hits)
        s.late += len(grant.late)
        s.right += grant.guessed
        s.on_cpu += on_cpu

    def _drop(self, grant: Grant) -> list[Command]:
        return [c for k in grant.cancelled for c in self._link.drop(k)]

    def _on_cpu(self, hits: list[int], others: Sequence[int], rows: Sequence[int], base: int) -> frozenset[int]:
        """Which of the experts that are not here the CPU computes."""
        if self.caching.work == "gpu" or not others:
            return frozenset()
        if self.caching.work == "cpu-expert":
            return frozenset(others)
        disk = self._estimate("read_expert", ()) if self.host is not None else 0
        queue, missing = 0, []
        for k in others:
            gone = self.host is not None and not self.host.here(k)
            queue += disk if gone else 0
            missing.append(Missing(k, rows[k - base], queue if gone else 0))
        n = len(self._rows)
        back = self._estimate("offload_normed", (n,)) + self._estimate("load_partial", (n,))
        load = self._estimate("load_expert", ())
        times = Times(load, lambda r: self._estimate("experts", r), lambda r: self._estimate("cpu_experts", r), back)
        return split(tuple(sorted(hits, reverse=True)), missing, times)

    def _read(self, keys: list[int], out: list[Command]) -> dict[int, int]:
        """Demand reads of what is not in the host's memory; the task that each such key waits for."""
        if self.host is None or not keys:
            return {}
        layer, experts = keys[0] // self.model.experts, self.model.experts
        grant = self.host.need(layer, [k % experts for k in keys])
        assert isinstance(grant, Grant) and len(grant.waves) <= 1, grant
        self._host_pinned = True
        out += [c for k in grant.cancelled for c in self._disk.drop(k)]
        loads = [load for wave in grant.waves for load in wave]
        if loads:
            out += self._disk.stop(but=grant.late)
        numbers: dict[int, int] = {}
        for k in grant.late:
            flight = self._disk.claim(k)
            assert flight is not None, f"key {k} is late and on no way"
            numbers[k] = flight.number if flight.number >= 0 and flight.wanted and not flight.stopped else self._demand_read(k, flight, out)
        for load in loads:
            numbers[load.key] = self._demand_read(load.key, Flight(load.key, load.slot), out)
        self._reads.update(numbers)
        return numbers

    def _demand_read(self, key: int, flight: Flight, out: list[Command]) -> int:
        self.served.read += flight.left
        task = self._copy("read_expert", NVME, flight, (), buffers.expert_host(flight.slot))
        out.append(task)
        return task.number

    def _run_on_gpu(
        self, grant: Grant, elsewhere: frozenset[int], rows: Sequence[int], reads: dict[int, int], out: list[Command]
    ) -> None:
        """Experts that are here at once, then those that were on their way, then the others, each as it arrives."""
        late = [k for k in grant.late if k not in elsewhere]
        if grant.waves:
            out += self._link.stop(but=late)
        arriving: list[tuple[int, int, int]] = []
        for k in late:
            flight = self._link.claim(k)
            assert flight is not None, f"key {k} is late and on no way"
            going = flight.number >= 0 and not flight.stopped
            arriving.append((k, flight.slot, flight.number if going else self._demand(flight, reads, out)))
        if grant.hits or self.model.shared_experts:
            self._experts([(k, grant.slots[k]) for k in grant.hits], rows, (), out, shared=True)
        for k, slot, number in arriving:
            self._experts([(k, slot)], rows, (number,), out)
        for wave in grant.waves:
            loads = [(load, self._demand(Flight(load.key, load.slot), reads, out)) for load in wave]
            for load, number in loads:
                self._experts([(load.key, load.slot)], rows, (number,), out)

    def _demand(self, flight: Flight, reads: dict[int, int], out: list[Command]) -> int:
        """A load that the layer waits for. What it overwrites has been read to the end."""
        deps = tuple(n for n in (reads.get(flight.key, -1), self._reader.get(flight.slot, -1)) if n >= 0)
        task = self._copy("load_expert", H2D, flight, deps, buffers.expert(flight.slot), self._host_buffers(flight.key))
        self.served.moved += flight.left
        out.append(task)
        return task.number

    def _host_buffers(self, key: int) -> tuple[str, ...]:
        """Where the host has it; without a table every expert has the slot of its key."""
        return (buffers.expert_host(key if self.host is None else self.host.slot(key)),)

    def _experts(
        self, held: Sequence[tuple[int, int]], rows: Sequence[int], deps: tuple[int, ...], out: list[Command], shared: bool = False
    ) -> None:
        """One task for experts (key, slot) on the GPU."""
        counts = tuple(sorted((rows[k % self.model.experts] for k, _ in held), reverse=True))
        work = Work("experts", len(self._rows) if shared and self.model.shared_experts else 0, expert_tokens=counts)
        reads = (buffers.routed(0), *(buffers.expert(s) for _, s in held))
        task = self._compute(work, reads=reads, writes=(buffers.moe(0),), deps=deps)
        for _, s in held:
            self._reader[s] = task.number
        out.append(task)

    def _run_on_cpu(self, keys: Sequence[int], rows: Sequence[int], reads: dict[int, int], out: list[Command]) -> None:
        n, counts = len(self._rows), tuple(sorted((rows[k % self.model.experts] for k in keys), reverse=True))
        down = Work("offload_normed", n, n, bytes=n * self.sizes.hidden_bytes)
        offload = self._task(down, D2H, (self._gate,), reads=(buffers.routed(0),), writes=(buffers.routed_host(0),))
        there = tuple(b for k in keys for b in self._host_buffers(k))
        task = self._task(
            Work("cpu_experts", expert_tokens=counts), CPU, (offload.number, *(reads[k] for k in keys if k in reads)),
            reads=(buffers.routed_host(0), *there), writes=(buffers.moe_host(0),), notify=True,
        )  # fmt: skip
        out += [offload, task]
        self._cpu_task = task.number

    def _returned(self) -> Sequence[Command]:
        """The CPU is done: its results go to the GPU before anything else on the link."""
        n = len(self._rows)
        up = Work("load_partial", n, n, bytes=n * self.sizes.hidden_bytes)
        out = self._link.stop()
        task = self._task(up, H2D, (self._cpu_task,), reads=(buffers.moe_host(0),), writes=(buffers.moe_part(0),))
        out.append(task)
        return [*out, *self._combine_and_go_on((task.number,)), *self._link.fill()]

    def _combine_and_go_on(self, deps: tuple[int, ...] = ()) -> list[Command]:
        n, hidden = len(self._rows), buffers.hidden(0)
        made = (buffers.moe(0), buffers.moe_part(0)) if deps else (buffers.moe(0),)
        combine = self._compute(Work("combine", n, n), reads=(*made, hidden), writes=(hidden,), deps=deps)
        return [combine, *self._forward(self._layer + 1)]

    # Prefetch -----------------------------------------------------------------------------------

    def _prefetch(self, layer: int, asked: Sequence[int], event: Finished) -> None:
        guesses = self._predictor.saw(layer, asked, event.result.facts)
        if self.governor is not None and not self.governor.on:
            return
        for then, e in guesses:
            self._guess(then * self.model.experts + e)

    def _guess(self, key: int) -> Sequence[Command]:
        """Fetch ahead what is not here; from the disk first, where it is not in the host's memory either."""
        if self.host is not None and not self.host.here(key):
            if isinstance(read := self.host.ahead(key), Load):
                self._disk.add(key, read.slot)
            return ()
        found = self.table.ahead(key)
        if not isinstance(found, Refusal):
            self.served.guesses += 1
            self._link.add(key, found.slot)
        return ()

    def _fetch_ahead(self, flight: Flight) -> Task | None:
        if self.host is not None:
            if not self.host.here(flight.key):  # it gave way while the flight waited
                self.table.lost(flight.key)
                return None
            self.host.hold(flight.key)
        deps = tuple(n for n in (self._reads.get(flight.key, -1), self._reader.get(flight.slot, -1)) if n >= 0)
        task = self._copy("load_expert", H2D, flight, deps, buffers.expert(flight.slot), self._host_buffers(flight.key), True)
        flight.number = task.number
        return task

    def _read_ahead(self, flight: Flight) -> Task:
        task = self._copy("read_expert", NVME, flight, (), buffers.expert_host(flight.slot), (), True)
        flight.number = task.number
        return task

    # Tasks --------------------------------------------------------------------------------------

    def _estimate(self, op: str, rows: tuple[int, ...]) -> Time:
        """Solo time of an op; rows: of each expert, or the tokens of a copy."""
        key = (op, rows)
        if key not in self._estimates:
            assert self._profile is not None
            lane = {"experts": GPU, "cpu_experts": CPU, "offload_normed": D2H, "read_expert": NVME}.get(op, H2D)
            size = self.model.expert_bytes if op in ("load_expert", "read_expert") else sum(rows) * self.sizes.hidden_bytes
            work = Work(op, expert_tokens=rows) if lane in (GPU, CPU) else Work(op, bytes=size)
            self._estimates[key] = self._profile.estimate(Task(0, work, lane))
        return self._estimates[key]

    def _copy(
        self, op: str, lane: str, flight: Flight, deps: tuple[int, ...], to: str, reads: tuple[str, ...] = (), notify: bool = False
    ) -> Task:
        layer, expert = divmod(flight.key, self.model.experts)
        work = Work(op, bytes=max(1, round(flight.left * self.model.expert_bytes)))
        return self._task(work, lane, deps, reads=reads, writes=(to,), layer=layer, page=expert, notify=notify)

    def _compute(
        self, work: Work, *, reads: tuple[str, ...], writes: tuple[str, ...], deps: tuple[int, ...] = (), notify: bool = False
    ) -> Task:
        before = (self._last,) if self._last >= 0 else ()
        task = self._task(work, GPU, (*before, *deps), reads=reads, writes=writes, notify=notify)
        self._last = task.number
        return task

    def _task(
        self, work: Work, lane: str, deps: tuple[int, ...], *, reads: tuple[str, ...], writes: tuple[str, ...], notify: bool = False,
        layer: int | None = None, page: int = -1,
    ) -> Task:  # fmt: skip
        number = self._next
        self._next += 1
        if notify and page < 0:
            self._awaited[number] = work.op
        return Task(
            number, work, lane, deps, reads, writes, notify=notify, phase="decode", step=self.served.steps + 1,
            layer=self._layer if layer is None else layer, microbatch=0, page=page, requests=tuple(r.request_id for r, _ in self._rows),
        )  # fmt: skip
