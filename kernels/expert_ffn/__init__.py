"""One expert's SwiGLU feed-forward network: [rows, hidden] -> [rows, hidden] (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import numpy as np

from kernels import linear
from kernels.cost import NOTHING, Cost
from kernels.expert_ffn.cpu import grouped, swiglu
from kernels.expert_ffn.gpu import grouped_cuda

__all__ = ["grouped", "grouped_cuda", "reference", "swiglu", "swiglu_work", "work"]


def swiglu_work(rows: int, ffn: int, b: int) -> Cost:
    """silu(gate) * up with silu(x) = x / (1 + exp(-x)): negate, exp, add, divide, multiply.

    Bytes: gate and up read, the product written.
    """
    return Cost(5 * rows * ffn, b * 3 * rows * ffn)


def work(rows: int, hidden: int, ffn: int, b: int) -> Cost:
    """Three matrices of one expert, gate and up as one product with [2 ffn, hidden].

    6 rows hidden ffn FLOPs and the activation. Bytes: 3 hidden ffn of weights, rows in and out,
    the intermediates through memory. An expert without rows is not touched: nothing.
    """
    if not rows:
        return NOTHING
    return linear.work(rows, hidden, 2 * ffn, b) + swiglu_work(rows, ffn, b) + linear.work(rows, ffn, hidden, b)


def reference(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """x [rows, hidden]; gate, up [ffn, hidden]; down [hidden, ffn]."""
    g = x @ gate.T
    return (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T
