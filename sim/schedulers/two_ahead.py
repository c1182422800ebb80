"""The CPU-attention pipeline that runs two micro-batches ahead, shared by CGOPipe and FastDecode*."""

from __future__ import annotations

from collections.abc import Callable

from sim.schedulers.passes import Pass

AHEAD = 2
"""Micro-batches between the GPU's post_attn and the CPU's attention (MoE-Lightning, Algorithm 1)."""

Slot = Callable[[int, int], None]
"""Called with (layer, slot); slot k belongs to the k-th micro-batch."""


def _nothing(layer: int, slot: int) -> None:
    pass


def two_ahead(p: Pass, *, behind_front: Slot = _nothing, behind_load: Slot = _nothing) -> None:
    """One decode step in the launch order of Algorithm 1 with the released code's wrap rules.

    The prologue runs at every step. Micro-batch k + 2 beyond the last wraps into the next layer,
    except at the last layer. `behind_front(i, k)` is called in the loop's body at (i, k) behind the
    front (pre_attn, offload, CPU attention), and in the prologue as (-1, k); `behind_load(i, k)`
    behind the load of the attention output.
    """
    n = len(p.rows)
    for k in range(min(AHEAD, n)):
        _front(p, 0, k)
        behind_front(-1, k)
    for i in p.layers:
        for k, r in enumerate(p.rows):
            p.load_hidden(i, r)
            behind_load(i, k)
            p.finish(i, r)
            if k + AHEAD < n:
                _front(p, i, k + AHEAD)
            elif i + 1 < p.sizes.layers:
                _front(p, i + 1, (k + AHEAD) % n)
            behind_front(i, k)


def _front(p: Pass, i: int, k: int) -> None:
    r = p.rows[k]
    p.begin(i, r)
    p.offload_qkv(i, r)
    p.attn_cpu(i, r)
