"""The layer as its ops one after another, in the dtype of its inputs."""

from __future__ import annotations

import numpy as np

from kernels import combine, dispatch, expert_ffn, linear, router


def reference(
    x: np.ndarray, gate: np.ndarray, experts: np.ndarray, residual: np.ndarray, top_k: int, ffn: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, residual [tokens, hidden]; gate [experts, hidden]; experts flat, for each gate [ffn, hidden], up
    [ffn, hidden], down [hidden, ffn]. Returns the result [tokens, hidden], ids and weights [tokens, k].
    """
    hidden, count = x.shape[1], len(gate)
    ids, weights = router.reference(linear.reference(x, gate), top_k)
    offsets, positions, rows = dispatch.reference(x, ids, count)
    out = np.empty_like(rows)
    for e in range(count):
        mine = slice(offsets[e], offsets[e + 1])
        g, u, d = experts[e * 3 * ffn * hidden : (e + 1) * 3 * ffn * hidden].reshape(3, -1)
        out[mine] = expert_ffn.reference(rows[mine], g.reshape(ffn, hidden), u.reshape(ffn, hidden), d.reshape(hidden, ffn))
    return combine.reference(out, positions, weights, residual), ids, weights
