"""Workload: how long prompts and generations are, and the seeded requests that follow."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sim.errors import UserError
from sim.events import Request
from sim.workloads.lengths import Distribution, Fixed, Lengths

PROMPT_STREAM, GENERATION_STREAM = 0, 1


class Workload(BaseModel):
    """A source of requests.

    `ends_early`: sequences end on their own, at a length that the scheduler is not told
    (`Request.output_tokens` is None); otherwise each generates exactly what it asks for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    description: str = ""
    source: str = Field(min_length=3, description="where the lengths come from, and what about them is assumed")
    prompt: Distribution
    generation: Distribution
    ends_early: bool = False
    bound: int | None = Field(None, gt=0, description="longest generation; draws are scaled to it from the distribution's own")
    requests_per_slot: int = Field(1, gt=0, le=1000, description="requests to serve for each sequence of the batch")
    padded: bool = Field(False, description="every prompt padded to the longest")

    def with_generation(self, tokens: int) -> Workload:
        """`--gen`: the generation length. Where lengths are drawn it is the bound, and the draws scale with it."""
        if tokens <= 0:
            raise UserError(f"--gen: is {tokens}; at least 1 token is needed")
        if not self.ends_early:
            return self.model_copy(update={"generation": Fixed(tokens=tokens)})
        return self.model_copy(update={"bound": tokens})

    def with_padding(self) -> Workload:
        """`--padded`: every prompt as long as the longest."""
        return self.model_copy(update={"padded": True})

    @property
    def longest_prompt(self) -> int:
        return self.prompt.longest

    @property
    def longest_generation(self) -> int:
        return self.bound or self.generation.longest

    def requests(self, count: int, seed: int = 0) -> tuple[tuple[Request, ...], tuple[int, ...]]:
        """`count` requests, numbered from 0, and the tokens that each will really generate.

        The lengths are for the outcome source of the run only: where sequences end early the
        requests do not tell them.
        """
        prompts, lengths = (drawn.tolist() for drawn in self.lengths(count, seed))
        longest = self.longest_generation
        made = tuple(
            Request(
                request_id=i,
                prompt_tokens=prompts[i],
                max_output_tokens=longest if self.ends_early else lengths[i],
                output_tokens=None if self.ends_early else lengths[i],
            )
            for i in range(count)
        )
        return made, tuple(lengths)

    def lengths(self, count: int, seed: int = 0) -> tuple[Lengths, Lengths]:
        """Prompt and generated tokens of `count` requests [count]."""
        prompts = self.prompt.draw(count, seed, PROMPT_STREAM)
        drawn = self.generation.draw(count, seed, GENERATION_STREAM)
        if self.bound is not None:
            drawn = (drawn * self.bound // self.generation.longest).clip(1, self.bound)
        return np.full_like(prompts, self.longest_prompt) if self.padded else prompts, drawn
