"""What an op costs: floating point operations and bytes of memory traffic.

How the work formulas of this package count
-------------------------------------------
FLOPs: one for each scalar +, -, *, /, max, comparison of a search, sqrt, exp; a reduction of n
numbers is n; a matrix product [m, k] x [k, n] is 2 m k n. Rearranging bytes costs none. The formulas
equal an instrumented run of each op's `reference` (tests/kernels/test_work.py).

Bytes: each operand read once and each result written once, in the form that the executor runs
(intermediates that go through memory count; a row that stays in a cache between two uses does
not). `b` is the bytes of one element of weights, activations and KV cache; int16 expert numbers,
int32 row numbers, int64 token ids and float32 routing weights are counted as they are stored.

The GEMM, attention and expert terms are those of MoE-Lightning (arXiv 2411.11217, section 4.2 and
its released performance model); the small ops follow from their references.
"""

from __future__ import annotations

from typing import NamedTuple

EXPERT_ID_BYTES = 2
ROW_BYTES = 4
TOKEN_ID_BYTES = 8
ROUTING_WEIGHT_BYTES = 4


class Cost(NamedTuple):
    """Demand of one op; `+` adds two demands."""

    flops: float
    bytes: float

    def __add__(self, other: object) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


NOTHING = Cost(0, 0)
