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
from sim.events import Arrived, Event, Failed, Finished, Request, Started
from sim.models.spec import ModelSpec
from sim.residency.grant import Grant
from sim.schedulers.caching import Caching, Served
from sim.schedulers.expert_layers import Layers
from sim.schedulers.expert_loads import Loads
from sim.schedulers.expert_tasks import CPU, D2H, GPU, H2D, Tasks
from sim.schedulers.policy import Policy
from sim.schedulers.sizes import sizes
from sim.tasks import Command, Time, Work


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
        self.served = Served()
        self.stopped = ""
        self._limit = steps
        self._tasks = Tasks(model, self.served)
        self._loads = Loads(model, caching, self._tasks, self.served)
        self._layers = Layers(model, self.sizes, caching, self._tasks, self._loads)
        self.table, self.host, self.governor = self._loads.table, self._loads.host, self._loads.governor
        self._waiting: deque[Request] = deque()
        self._closed = False
        self._live: list[tuple[Request, int] | None] = [None] * policy.batch
        """Request and tokens made of each slot."""
        self._running = False

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if self.stopped:
            return ()
        if isinstance(event, Started):
            self._layers.profile = event.profile
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
        op = self._tasks.awaited.pop(event.task, "")
        if op == "gate":
            return self._routed(event)
        if op == "cpu_experts":
            return self._layers.returned()
        if op == "sample":
            return self._sampled(now, event)
        return self._loads.landed(event.task)

    def _failed(self, event: Failed) -> Sequence[Command]:
        out = self._loads.failed(event)
        if out is None:
            self.stopped = f"task {event.task}: {event.reason}"
            return ()
        return out

    def _begin_step(self) -> Sequence[Command]:
        for j, row in enumerate(self._live):
            if row is None and self._waiting:
                self._live[j] = (self._waiting.popleft(), 0)
        self._tasks.rows = [row for row in self._live if row is not None]
        self._running = bool(self._tasks.rows) and self.served.steps != self._limit
        if not self._running:
            return ()
        n = len(self._tasks.rows)
        out: list[Command] = [self._tasks.compute(Work("embed", n, n), reads=(buffers.token(0),), writes=(buffers.hidden(0),))]
        return out + self._layers.forward(0)

    def _sampled(self, now: Time, event: Finished) -> Sequence[Command]:
        rows = self._tasks.rows
        self.served.tokens += len(rows)
        self.served.steps += 1
        for j, row in enumerate(self._live):
            if row is not None:
                over = row[0].request_id in event.result.ended or row[1] + 1 >= row[0].max_output_tokens
                self._live[j] = None if over else (row[0], row[1] + 1)
        self._loads.ended(now, len(rows), len(rows) - sum(row is not None for row in self._live))
        return self._begin_step()

    def _routed(self, event: Finished) -> Sequence[Command]:
        rows = event.result.experts
        layer, self._layers.gate = self._tasks.layer, event.task
        assert sum(rows) == self.model.top_k * len(self._tasks.rows), f"layer {layer}: routes {rows} for {len(self._tasks.rows)} tokens"
        self._loads.release()
        asked = [e for e, n in enumerate(rows) if n]
        hits, late, missing = self.table.look(layer, asked)
        base = layer * self.model.experts
        elsewhere = self._layers.on_cpu([rows[k - base] for k in hits], [*late, *missing], rows, base)
        out: list[Command] = []
        grant = self._loads.need(layer, asked, elsewhere, out)
        self._count(grant, len(elsewhere))
        reads = self._loads.read([*grant.missed, *late], out)
        self._layers.run_on_gpu(grant, elsewhere, rows, reads, out)
        if elsewhere:
            self._layers.run_on_cpu(sorted(elsewhere), rows, reads, out)
        else:
            out += self._layers.combine_and_go_on()
        self._loads.promote(grant.promotions)
        self._loads.prefetch(layer, asked, event.result)
        return out + self._loads.fill()

    def _count(self, grant: Grant, on_cpu: int) -> None:
        s = self.served
        s.events += 1
        s.asked += len(grant.hits) + len(grant.late) + len(grant.missed)
        s.hits += len(grant.hits)
        s.late += len(grant.late)
        s.right += grant.guessed
        s.on_cpu += on_cpu
