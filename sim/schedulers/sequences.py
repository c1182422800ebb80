"""Who is being served: the sequences of each micro-batch, what they have generated, who may join."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sim.events import Request
from sim.schedulers.batching import Partition, cache_tokens, fill, prompt_rows
from sim.schedulers.passes import Rows
from sim.schedulers.policy import Policy


@dataclass(slots=True)
class Live:
    """A sequence in the batch. rows: its prompt's, padding included. generated: tokens sampled."""

    request: Request
    rows: int
    generated: int = 0

    @property
    def limit(self) -> int:
        """Tokens after which it has ended, whatever its last result says."""
        return self.request.output_tokens or self.request.max_output_tokens


class Sequences:
    """Requests that wait, and the micro-batches that are served; pure bookkeeping."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.waiting: list[Request] = []
        self.closed = False
        """No further request will arrive."""
        self._slots: list[list[Live]] = [[] for _ in range(policy.microbatches)]
        self._cache_tokens = 0

    # Arrivals and admission ---------------------------------------------------------------------

    def arrive(self, request: Request, last: bool) -> None:
        self.waiting.append(request)
        self.closed = self.closed or last

    @property
    def live(self) -> int:
        return sum(map(len, self._slots))

    @property
    def may_admit(self) -> bool:
        """Whether a prefill pass for newcomers is worth its weights, see `Policy.refill`. A fresh
        batch waits until it is full or nobody else will come."""
        if not self.waiting:
            return False
        if self.live == 0:
            return self.closed or len(self.waiting) >= self.policy.batch
        free = min(self.policy.batch - self.live, len(self.waiting))
        return free >= self.policy.refill * self.policy.batch

    @property
    def more_may_come(self) -> bool:
        return bool(self.waiting) or not self.closed

    def admit(self) -> list[list[Request]]:
        """Form a batch, or refill the one that is served. Returns the newcomers of each micro-batch;
        who was aborted goes on waiting.

        A fresh batch numbers its micro-batches in the order in which Algorithm 2 emits them; fewer
        requests than fit one make a single micro-batch.
        """
        fresh = self.live == 0
        candidates = self.waiting[: self.policy.batch - self.live]
        # Those that are served count too: one of them may go on for longer than any newcomer.
        gen = generation([*candidates, *(s.request for slot in self._slots for s in slot)], self.policy)
        rows = prompt_rows(candidates, self.policy.padded)
        limit = self._cache_tokens = cache_tokens(self.policy, list(rows.values()), gen, self._cache_tokens)
        partitions = [Partition(sum(s.rows for s in slot), len(slot)) for slot in self._slots]
        if fresh and len(candidates) < self.policy.microbatch:
            partitions = partitions[:1]
        order, aborted = fill(candidates, partitions, microbatch=self.policy.microbatch, cache_tokens=limit, rows=rows, gen=gen)
        self.waiting = aborted + self.waiting[len(candidates) :]
        newcomers: list[list[Request]] = [[] for _ in self._slots]
        for place, k in enumerate(k for k in order if partitions[k].added):
            newcomers[place if fresh else k] = partitions[k].added
        for slot, joining in zip(self._slots, newcomers, strict=True):
            slot.extend(Live(r, rows[r.request_id]) for r in joining)
        return newcomers

    # Rows of a pass -----------------------------------------------------------------------------

    def prefill_rows(self) -> list[Rows]:
        """Micro-batches of the prompts that were not prefilled, in pieces of `prefill_rows`."""
        pieces: list[tuple[int, list[Live]]] = []
        for j, slot in enumerate(self._slots):
            new = [s for s in slot if s.generated == 0]
            size = self.policy.prefill_rows
            pieces += [(j, new[a : a + size]) for a in range(0, len(new), size)]
        whole = self.policy.prefill_rows == self.policy.microbatch
        return [_prompts(j if whole else q, j, piece) for q, (j, piece) in enumerate(pieces)]

    def decode_rows(self) -> list[Rows]:
        return [_next_tokens(j, slot) for j, slot in enumerate(self._slots) if slot]

    # Progress -----------------------------------------------------------------------------------

    def sampled(self, rows: Rows, ended: Iterable[int]) -> None:
        """Each sequence of `rows` has one more token; those that ended leave."""
        gone = set(ended)
        mine = set(rows.requests)
        slot = self._slots[rows.cache]
        for s in slot:
            s.generated += s.request.request_id in mine
        self._slots[rows.cache] = [s for s in slot if s.request.request_id not in gone and s.generated < s.limit]

    def clear(self) -> None:
        """The whole batch has ended."""
        self._slots = [[] for _ in self._slots]

    def common_length(self) -> int | None:
        """Tokens that every sequence will generate, where all are known to generate as many."""
        lengths = {s.request.output_tokens for slot in self._slots for s in slot}
        return lengths.pop() if len(lengths) == 1 else None

    def all_end_next(self) -> bool:
        """Whether the next token of every sequence is its last by its limit."""
        return all(s.generated + 1 >= s.limit for slot in self._slots for s in slot)


def generation(requests: Sequence[Request], policy: Policy) -> int:
    """Tokens to keep room for: the policy's, or the longest that a request may generate."""
    return policy.gen or max(r.max_output_tokens for r in requests)


def _prompts(microbatch: int, cache: int, live: Sequence[Live]) -> Rows:
    return Rows(microbatch, cache, tuple(s.request.request_id for s in live), sum(s.rows for s in live), tuple(s.rows for s in live))


def _next_tokens(j: int, live: Sequence[Live]) -> Rows:
    lengths = tuple(s.rows + s.generated for s in live)
    return Rows(j, j, tuple(s.request.request_id for s in live), len(live), lengths)
