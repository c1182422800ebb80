"""MoELayer: the sizes of one MoE layer, and what its parts cost in FLOPs and bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kernels import combine, dispatch, router
from kernels.cost import Cost
from sim.errors import UserError
from sim.models.spec import DTYPE_BYTES, ModelSpec

ELEMENT_BYTES = {**DTYPE_BYTES, "tf32": 4}
"""tf32: 4 bytes in memory and on the wire, rounded as the tensor cores read them."""


@dataclass(frozen=True, slots=True)
class MoELayer:
    """ffn: intermediate size of an expert. gated: three matrices an expert (SwiGLU), else two. dtype: of weights, activations and
    what is sent. Raises UserError for sizes that make no layer."""

    hidden: int
    ffn: int
    experts: int
    top_k: int
    gated: bool = True
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        for name in ("hidden", "ffn", "experts", "top_k"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: is {getattr(self, name)}; 1 or more is needed")
        if self.top_k > self.experts:
            raise UserError(f"top_k: is {self.top_k}, of {self.experts} experts; at most that many is possible")
        if self.dtype not in ELEMENT_BYTES:
            raise UserError(f"dtype: is {self.dtype!r}; must be one of {', '.join(ELEMENT_BYTES)}")

    @staticmethod
    def of(model: ModelSpec, gated: bool = True) -> MoELayer:
        return MoELayer(model.hidden, model.ffn, model.experts, model.top_k, gated, model.dtype)

    def model(self) -> ModelSpec:
        """A model of this layer alone, for schedulers; its attention is none of anybody's business."""
        dtype = "fp32" if self.dtype == "tf32" else self.dtype
        return ModelSpec(
            name=f"moe-{self.experts}x{self.ffn}", family="moe-layer", layers=1, hidden=self.hidden, ffn=self.ffn, experts=self.experts,
            top_k=self.top_k, heads=1, kv_heads=1, head_dim=1, vocab=1, dtype=dtype,
        )  # fmt: skip

    def with_dtype(self, dtype: str) -> MoELayer:
        return replace(self, dtype=dtype)

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        return self.hidden * self.element_bytes

    @property
    def up_matrices(self) -> int:
        """Matrices [hidden, ffn]: up, and gate where there is one."""
        return 2 if self.gated else 1

    @property
    def expert_flops(self) -> int:
        """Of one row through one expert, its products only."""
        return 2 * self.hidden * self.ffn * (self.up_matrices + 1)

    def gate(self, tokens: int) -> Cost:
        return router.work(tokens, self.hidden, self.experts, self.top_k, self.element_bytes)

    def permute(self, tokens: int) -> Cost:
        return dispatch.work(tokens, self.top_k, self.hidden, self.element_bytes)

    def unpermute(self, tokens: int) -> Cost:
        return combine.work(tokens, self.top_k, self.hidden, self.element_bytes)

    def sort(self, rows: int) -> Cost:
        """Received rows put in the experts' order, and their results back: each read and written twice."""
        return Cost(0, 4 * rows * self.row_bytes)

    def grouped_gemms(self, rows: tuple[int, ...], tile_rows: int) -> Cost:
        """GEMM0, activation and GEMM1 of experts with so many rows each, in tiles of `tile_rows`: a tile that is not full takes as
        long. Bytes: weights of the experts touched, rows in and out, the intermediate written and read."""
        touched = sum(r > 0 for r in rows)
        padded = sum(-(-r // tile_rows) * tile_rows for r in rows)
        weights = touched * self.hidden * self.ffn * (self.up_matrices + 1)
        moved = sum(rows) * (2 * self.hidden + 2 * self.ffn)
        return Cost(padded * self.expert_flops, (weights + moved) * self.element_bytes)
