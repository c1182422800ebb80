"""Sequences being served: their prompts, what they have generated, and the rows of a micro-batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.events import Request


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a micro-batch on their way through the layers; they travel with its buffers.

    requests [S]: sequences in row order. offsets [S + 1]: sequence s is rows offsets[s] to
    offsets[s + 1]. before [S]: cache entries that precede its rows. All int64.
    """

    requests: tuple[int, ...]
    offsets: NDArray[np.int64]
    before: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return int(self.offsets[-1])

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Position in its sequence of each row [rows]."""
        return np.arange(self.rows) + np.repeat(self.before - self.offsets[:-1], np.diff(self.offsets))

    def from_row_zero(self) -> MicroBatch:
        """These rows as an array of their own has them."""
        return MicroBatch(self.requests, self.offsets - self.offsets[0], self.before)

    @cached_property
    def request_rows(self) -> NDArray[np.int64]:
        """Request number of each row [rows]."""
        return np.repeat(np.array(self.requests, np.int64), np.diff(self.offsets))


class Generation:
    """One request: its prompt, the tokens sampled for it, and after how many it ends.

    rows: rows that its prompt took in the prefill, padding included.
    """

    __slots__ = ("limit", "most", "prompt", "rows", "tokens")

    def __init__(self, prompt: NDArray[np.int64], limit: int, most: int) -> None:
        self.prompt = prompt
        self.limit = limit
        self.most = most
        self.rows = len(prompt)
        self.tokens: list[int] = []


class Sequences:
    """All sequences of a run, by request number.

    prompts [requests]: token ids of each. lengths [requests]: tokens that each generates; None: what
    its request states. eos: token ids that end a sequence earlier, once sampled. pad: token that
    fills prompts on the left where a scheduler pads them; it is attended to like any other.

    Raises UserError for prompts that do not fit their requests or the vocabulary.
    """

    def __init__(
        self, requests: Sequence[Request], prompts: Sequence[Sequence[int]], vocab: int, *, lengths: Sequence[int] | None = None,
        eos: Collection[int] = (), pad: int = 0,
    ) -> None:  # fmt: skip
        if len(prompts) != len(requests):
            raise UserError(f"prompts: {len(prompts)} for {len(requests)} requests; one each is needed")
        self._eos = frozenset(eos)
        self._pad = pad
        self._all: dict[int, Generation] = {}
        self._to_hand_out: list[int] = []
        for k, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            ids = np.asarray(prompt, np.int64)
            if len(ids) != request.prompt_tokens:
                raise UserError(f"prompts[{k}]: has {len(ids)} tokens; request {request.request_id} states {request.prompt_tokens}")
            if ids.min(initial=0) < 0 or ids.max(initial=0) >= vocab:
                raise UserError(f"prompts[{k}]: token ids reach from {ids.min()} to {ids.max()}; the vocabulary has 0 to {vocab - 1}")
            limit = lengths[k] if lengths is not None else request.output_tokens or request.max_output_tokens
            self._all[request.request_id] = Generation(ids, limit, max(limit, request.max_output_tokens))

    def prompts(self, requests: Sequence[int], rows: int) -> tuple[NDArray[np.int64], MicroBatch]:
        """Token ids [rows] of whole prompts, each padded to an equal share of `rows` where they are fewer."""
        mine = [self._all[r] for r in requests]
        padded = rows // len(mine) if sum(len(s.prompt) for s in mine) != rows else 0
        for s in mine:
            s.rows = max(padded, len(s.prompt))
        lengths = np.array([s.rows for s in mine], np.int64)
        assert lengths.sum() == rows, f"prompts of requests {tuple(requests)} take {lengths.sum()} rows, the task states {rows}"
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        ids = np.full(rows, self._pad, np.int64)
        for s, end in zip(mine, offsets[1:].tolist(), strict=True):
            ids[end - len(s.prompt) : end] = s.prompt
        return ids, MicroBatch(tuple(requests), offsets, np.zeros(len(mine), np.int64))

    def prompt_tokens(self, requests: Sequence[int]) -> int:
        """Rows of these prompts, unpadded."""
        return sum(len(self._all[r].prompt) for r in requests)

    def next_tokens(self, requests: Sequence[int]) -> tuple[NDArray[np.int64], MicroBatch]:
        """The token sampled last of each sequence [S], and its row."""
        mine = [self._all[r] for r in requests]
        ids = np.array([s.tokens[-1] for s in mine], np.int64)
        return ids, self._decode_rows(requests, self._before(requests))

    def cached(self, requests: Sequence[int], written: NDArray[np.int64], context: int) -> MicroBatch:
        """The decode rows that come behind `context` cache entries in all, of which `written` [S] are in the cache.

        A cache may be on its way to the GPU before the step before has sampled: then what is written
        counts. Where a pass is repeated more is written than should be read: then the tokens count.
        """
        for before in (written, self._before(requests)):
            if before.sum() == context:
                return self._decode_rows(requests, before)
        raise AssertionError(f"requests {tuple(requests)} have {written.tolist()} cache entries, the task states {context} in all")

    def _before(self, requests: Sequence[int]) -> NDArray[np.int64]:
        return np.array([(s := self._all[r]).rows + len(s.tokens) - 1 for r in requests], np.int64)

    @staticmethod
    def _decode_rows(requests: Sequence[int], before: NDArray[np.int64]) -> MicroBatch:
        return MicroBatch(tuple(requests), np.arange(len(before) + 1), before)

    def sampled(self, requests: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
        """Note the next token of each sequence; returns those that end with it."""
        ended = []
        for request, token in zip(requests, tokens, strict=True):
            s = self._all[request]
            done = self._done(s)
            s.tokens.append(token)
            if not done and self._done(s):
                ended.append(request)
        self._to_hand_out += ended
        return tuple(ended)

    def hand_out(self) -> dict[int, list[int]]:
        """Tokens of the sequences that have ended since the last call, by request, and then forgotten: a service
        that runs for days keeps none of them. For runs that react to ends; one that was handed out whole
        samples ended sequences again."""
        ended, self._to_hand_out = self._to_hand_out, []
        found = {request: self._all[request].tokens[: self._all[request].limit] for request in ended}
        for request in ended:
            self._all[request].tokens = []
        return found

    def _done(self, s: Generation) -> bool:
        return len(s.tokens) >= s.limit or (bool(s.tokens) and s.tokens[-1] in self._eos)

    def entries(self, request: int) -> int:
        """KV entries to keep room for: the prompt's rows and all tokens it may generate."""
        s = self._all[request]
        return s.rows + s.most

    def outputs(self) -> dict[int, list[int]]:
        """Generated tokens of each request, up to its end."""
        return {request: s.tokens[: s.limit] for request, s in self._all.items()}
