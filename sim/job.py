"""Job: one run to be made, on either clock, checked as far as it can be before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.body import with_blocks
from sim.errors import UserError
from sim.events import Request
from sim.machines.ranks import with_ranks
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.schedulers import memory, registry
from sim.schedulers.policy import Policy
from sim.workloads.schema import Workload

MICROBATCH_DEFAULT = 64
MICROBATCHES_DEFAULT = 16


@dataclass(frozen=True, slots=True)
class Job:
    """Attributes
    ----------
    scheduler: its name on the command line; scheduler_class: what `fresh` makes an object of.
    lengths: tokens that each request really generates, by request number.
    peak_bytes: most that the schedule holds at once, by memory and consumer.
    """

    model: ModelSpec
    machine: Machine
    workload: Workload
    scheduler: str
    scheduler_class: type[Any]
    policy: Policy
    seed: int
    requests: tuple[Request, ...]
    lengths: tuple[int, ...]
    peak_bytes: Mapping[str, Mapping[str, int]]

    def fresh(self) -> Any:
        """A scheduler object that has seen nothing yet."""
        return self.scheduler_class(self.model, self.policy, seed=self.seed)

    @property
    def peak_by_memory(self) -> dict[str, int]:
        return {name: sum(consumers.values()) for name, consumers in self.peak_bytes.items()}


def prepare(
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    scheduler: str,
    policy: Policy | None = None,
    *,
    batch: int | None = None,
    microbatch: int | None = None,
    seed: int = 0,
) -> Job:
    """Check that the machine has the lanes and the memory for it, and draw the requests.

    `batch` and `microbatch` (sequences) override those of `policy`; what neither gives is chosen by
    `choices`. Raises `UserError` for an unknown scheduler, a lane that is missing, or a plan that does
    not fit, with the bytes that are missing.
    """
    if policy is not None and policy.tensor_parallel is not None:
        machine = with_ranks(machine, policy.tensor_parallel)
    found = registry.load(scheduler)
    if getattr(found, "fused", False):
        machine = with_blocks(machine)
    registry.check_lanes(scheduler, found.lanes, machine)
    if seed < 0:
        raise UserError(f"--seed: is {seed}; 0 or more is needed")
    check_positions(model, workload)
    refusal: UserError | None = None
    for chosen in choices(policy, batch, microbatch):
        requests, lengths = workload.requests(chosen.batch * workload.requests_per_slot, seed)
        chosen = all_in_one_batch(chosen, workload, requests)
        peak = found(model, chosen, seed=seed).memory(requests)
        try:
            memory.refuse_if_too_big(peak, machine.memories)
        except UserError as e:
            refusal = UserError(f"{scheduler} on {machine.name}, batch {chosen.batch}, microbatch {chosen.microbatch}: {e}")
            continue
        return Job(model, machine, workload, scheduler, found, chosen, seed, requests, lengths, peak)
    assert refusal is not None
    raise refusal


def check_positions(model: ModelSpec, workload: Workload) -> None:
    """Raises UserError where a sequence of the workload is longer than the model allows."""
    longest = workload.longest_prompt + workload.longest_generation
    if longest > model.max_positions:
        raise UserError(
            f"workload {workload.name}: prompt and generation reach {longest} positions, {model.name} has {model.max_positions}; "
            "lower --gen"
        )


def all_in_one_batch(policy: Policy, workload: Workload, requests: Sequence[Request]) -> Policy:
    """Room for every request in the one batch that it was drawn for.

    Algorithm 2's own limit, micro-batch x (average prompt + gen), aborts the few per cent that balance
    leaves over; MoE-Lightning's runs never serve those, and a second batch for them would cost as much
    as the first. Where sequences end early, aborted requests refill freed slots and the limit stays.
    """
    if policy.cache_tokens is not None or workload.ends_early:
        return policy
    longest = max(r.prompt_tokens for r in requests) + max(r.max_output_tokens for r in requests)
    return policy.model_copy(update={"cache_tokens": policy.microbatch * longest})


def choices(policy: Policy | None, batch: int | None, microbatch: int | None) -> Iterator[Policy]:
    """Policies to try, best first; one, where batch and micro-batch are given.

    The rule where they are not: the largest batch that fits, of at most 16 micro-batches of at most
    64 sequences, both powers of two; among equal batches the larger micro-batch. With only the batch
    given, the largest micro-batch of that kind; with only the micro-batch, the most micro-batches.
    """
    given = {} if policy is None else policy.model_dump(exclude_unset=True)
    batch, microbatch = batch or given.get("batch"), microbatch or given.get("microbatch")
    for total, part in _sizes(batch, microbatch):
        yield _policy({**given, "batch": total, "microbatch": part})


def _sizes(batch: int | None, microbatch: int | None) -> Sequence[tuple[int, int]]:
    """(batch, microbatch) in the order in which they are tried."""
    parts = [microbatch] if microbatch else _powers(min(MICROBATCH_DEFAULT, batch or MICROBATCH_DEFAULT))
    pairs = [(batch or part * count, part) for part in parts for count in ([1] if batch else _powers(MICROBATCHES_DEFAULT))]
    return sorted(pairs, reverse=True)


def _powers(most: int) -> list[int]:
    """Powers of two up to `most`."""
    return [1 << k for k in range(most.bit_length())]


def _policy(values: dict[str, Any]) -> Policy:
    from pydantic import ValidationError

    from sim.configuration import describe

    try:
        return Policy(**values)
    except ValidationError as e:
        raise UserError(f"policy: {describe(e)}") from None
