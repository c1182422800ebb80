"""Request batching: which sequences share a micro-batch (MoE-Lightning, Algorithm 2)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.errors import UserError
from sim.events import Request
from sim.schedulers.policy import Policy


@dataclass(slots=True)
class Partition:
    """A micro-batch being filled. `tokens` and `count` start above 0 where sequences live in it already."""

    tokens: int = 0
    count: int = 0
    added: list[Request] = field(default_factory=list)

    def add(self, request: Request, rows: int) -> None:
        self.added.append(request)
        self.tokens += rows
        self.count += 1


def prompt_rows(requests: Sequence[Request], padded: bool) -> dict[int, int]:
    """Rows that each prompt takes, by request: its own length, or the longest of all."""
    longest = max((r.prompt_tokens for r in requests), default=0)
    return {r.request_id: longest if padded else r.prompt_tokens for r in requests}


def cache_tokens(policy: Policy, rows: Sequence[int], gen: int, so_far: int = 0) -> int:
    """`cache_size` of Algorithm 2: microbatch * (average prompt + gen) cache entries, with the average
    of the first batch; `so_far`: what it was until now. The longest sequence always fits.

    Raises UserError where the policy's own figure is too small for that: it would wait for ever.
    """
    needed = max(rows) + gen
    if policy.cache_tokens is None:
        return max(needed, so_far or policy.microbatch * (sum(rows) // len(rows) + gen))
    if policy.cache_tokens < needed:
        raise UserError(f"policy.cache_tokens: is {policy.cache_tokens}; the longest sequence alone needs {needed} entries")
    return policy.cache_tokens


def fill(
    requests: Sequence[Request], partitions: Sequence[Partition], *, microbatch: int, cache_tokens: int, rows: dict[int, int], gen: int
) -> tuple[list[int], list[Request]]:
    """Algorithm 2: the longest prompt first, each into the partition with the fewest tokens.

    Fills `partitions` in place. Returns their indexes in the order in which they were emitted (the
    full ones as they filled up, then the rest, as the released code does) and the aborted requests
    in their order of arrival, for the next batch.
    """
    left = [(p.tokens, k) for k, p in enumerate(partitions) if p.count < microbatch]
    heapq.heapify(left)
    emitted: list[int] = []
    aborted: set[int] = set()
    for r in sorted(requests, key=lambda r: -rows[r.request_id]):
        if not left:
            aborted.add(r.request_id)
            continue
        k = left[0][1]
        p = partitions[k]
        if p.tokens + rows[r.request_id] + (1 + p.count) * gen > cache_tokens:
            aborted.add(r.request_id)
            continue
        p.add(r, rows[r.request_id])
        if p.count == microbatch:
            emitted.append(k)
            heapq.heappop(left)
        else:
            heapq.heapreplace(left, (p.tokens, k))
    return emitted + sorted(k for _, k in left), [r for r in requests if r.request_id in aborted]
