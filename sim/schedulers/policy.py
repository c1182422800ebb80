"""Policy: the sizes that a schedule is run with. Found by a search, read from YAML or given as flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim import configuration
from sim.models.spec import ModelSpec

Count = Annotated[int, Field(gt=0)]


class Policy(BaseModel):
    """How many sequences are served together, and what lives where.

    Attributes
    ----------
    batch: sequences in one pass of the whole model (N of MoE-Lightning, Definition 3.2).
    microbatch: sequences in one run of a kernel (mu, Definition 3.3). The last micro-batch may be smaller.
    pages: parts in which one layer's streamed experts move; None: one for each micro-batch.
    attention: where decode attention runs; None: where the scheduler's source has it.
    static_experts: experts of each layer that stay on the GPU; the rest is streamed.
    prefill_microbatch: sequences of one prefill micro-batch; None: `microbatch`.
    gen: tokens to generate for each sequence, for the cache's size; None: the requests' own longest.
    cache_tokens: KV entries that one micro-batch may fill (`cache_size` of Algorithm 2); None:
        microbatch * (average prompt + gen), and never less than the longest sequence.
    padded: every prompt takes as many rows as the longest of those that join together.
    tensor_parallel: GPUs that each layer is split over; None: all that the machine has.
    scheduler: the one that the other sizes were chosen for, where no other is asked for by name.
    refill: share of the batch's slots that must be free before newcomers are prefilled: a prefill
        pass streams all weights once, whatever it serves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: Count
    microbatch: Count
    pages: Count | None = None
    attention: Literal["cpu", "gpu"] | None = None
    static_experts: int = Field(0, ge=0)
    prefill_microbatch: Count | None = None
    gen: Count | None = None
    cache_tokens: Count | None = None
    padded: bool = False
    tensor_parallel: Count | None = None
    scheduler: str | None = None
    refill: float = Field(0.125, gt=0, le=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Policy:
        if self.microbatch > self.batch:
            raise ValueError(f"microbatch: is {self.microbatch}, more than the batch of {self.batch} sequences; it may be at most that")
        if self.prefill_microbatch is not None and self.prefill_microbatch > self.microbatch:
            raise ValueError(f"prefill_microbatch: is {self.prefill_microbatch}; at most the microbatch of {self.microbatch} is possible")
        return self

    @property
    def microbatches(self) -> int:
        """Micro-batches of a full batch."""
        return -(-self.batch // self.microbatch)

    @property
    def prefill_rows(self) -> int:
        """Sequences of one prefill micro-batch."""
        return self.prefill_microbatch or self.microbatch

    def streamed_experts(self, model: ModelSpec) -> int:
        """Experts of one layer that do not stay on the GPU."""
        return max(0, model.experts - self.static_experts)


def load(path: Path) -> Policy:
    """Read a policy from YAML. Raises `UserError` naming the file and every field that is wrong."""
    return configuration.load(path, Policy)
