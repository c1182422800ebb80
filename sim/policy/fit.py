"""Whether a point fits: exactly, by the scheduler's own account of its peak, and by a lower bound of it in closed form."""

from __future__ import annotations

from dataclasses import replace

from sim.costs import CostModel
from sim.job import Job, all_in_one_batch, prepare
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.policy.space import Point
from sim.policy.traffic import Traffic
from sim.schedulers import memory
from sim.schedulers.base import Scheduler
from sim.schedulers.memory import Load, Peak
from sim.workloads.schema import Workload


def job_of(point: Point, model: ModelSpec, machine: Machine, workload: Workload, seed: int) -> Job:
    """The job that runs it. Raises UserError where it does not fit, with the bytes that are missing."""
    return prepare(model, machine, workload, point.order.scheduler, point.policy(workload.padded), seed=seed)


class Fit:
    """Which points fit, and which numbers of micro-batches fit at most by lower bounds of what they need."""

    def __init__(self, costs: CostModel, traffic: Traffic) -> None:
        self.model, self.traffic = costs.model, traffic
        self.memories = costs.machine.memories
        self._schedulers: dict[Point, Scheduler] = {}

    def exactly(self, point: Point) -> bool:
        """By the scheduler's own account of its requests."""
        return not self.short_of(point)

    def short_of(self, point: Point) -> dict[str, int]:
        """Bytes that are missing, by memory."""
        return memory.short_of(self.peak(point), self.memories)

    def peak(self, point: Point) -> Peak:
        """Peak bytes by memory and consumer. What is in a batch at a time depends on its sizes only, whoever schedules it."""
        key = (point.microbatch, point.microbatches, point.prefill_rows)
        if key not in self.traffic.loads:
            requests = self.traffic.requests(point.batch)
            policy = all_in_one_batch(point.policy(self.traffic.workload.padded), self.traffic.workload, requests)
            self.traffic.loads[key] = memory.load(point.order.load()(self.model, policy), requests)
        return memory.peak_of(self._with(point, point.static_experts), self.traffic.loads[key])

    def most(self, point: Point, counts: tuple[int, ...], *, gpu_at: int, cpu_at: int, prefills: tuple[int, ...]) -> int:
        """How many of `counts` (ascending) fit at most, the GPU holding `gpu_at` static experts of each layer and the host
        lacking `cpu_at`: equal for a point, the ends of a range for a bound over it. prefills: sizes of a prefill micro-batch,
        of which none is told yet where there are several."""
        gpu = self._with(point, gpu_at)
        host = gpu if cpu_at == gpu_at else self._with(point, cpu_at)
        low, high = 0, len(counts)
        while low < high:
            middle = (low + high + 1) // 2
            load = self.load(gpu, replace(point, microbatches=counts[middle - 1]), prefills)
            low, high = (middle, high) if self._fits(gpu, host, load) else (low, middle - 1)
        return low

    def _with(self, point: Point, static_experts: int) -> Scheduler:
        key = replace(point, static_experts=static_experts, microbatches=1)
        if key not in self._schedulers:
            found: Scheduler = key.order.load()(self.model, key.policy())
            self._schedulers[key] = found
        return self._schedulers[key]

    def _fits(self, gpu: Scheduler, host: Scheduler, load: Load) -> bool:
        needed = memory.peak_of(gpu, load)
        if host is not gpu:
            needed = {**memory.peak_of(host, load), "gpu": needed["gpu"]}
        return not memory.short_of(needed, self.memories)

    def load(self, scheduler: Scheduler, point: Point, prefills: tuple[int, ...]) -> Load:
        """No more than is in the batch at a time; exactly that where all prompts are equal and one size of a prefill is left."""
        n, mu, gen, shortest = point.microbatches, point.microbatch, self.traffic.longest_gen, int(self.traffic.shortest)
        longest = self.traffic.longest_prompt(point.batch)
        mean = float(self.traffic.rows(point.batch))
        if self.traffic.reactive:
            policy = scheduler.policy.model_copy(update={"batch": point.batch, "prefill_microbatch": min(prefills)})
            limit = max(longest + gen, mu * ((int(mean) if self.traffic.ends_early else longest) + gen))
            return memory.refilled(policy, scheduler.sizes, longest, gen, gen, limit, point.batch * self.traffic.slots)
        sliding = len(self.model.sliding_layers)
        windows = ((self.model.layers - sliding, None), (sliding, self.model.sliding_window))
        entries = sum(layers * float(self.traffic.cache_entries(point.batch, window)) for layers, window in windows if layers)
        # The largest micro-batch is no smaller than the mean one, nor than the one with the longest prompt.
        rows, piece = (max(int(size * mean), longest + (size - 1) * shortest) for size in (mu, min(prefills)))
        return Load(
            sequences=point.batch, kv_bytes=int(entries * self.model.kv_bytes_per_token_layer), microbatch_kv=rows + mu * gen,
            prompt_rows=int(point.batch * mean), microbatch_rows=piece, microbatches=n * -(-mu // max(prefills)),
        )  # fmt: skip
