"""Prefill as MoE-Lightning does it, and the plain walks through the layers.

MoE-Lightning, section 4, footnote 7, and the released code: everything on the GPU; zig-zag (all
micro-batches through one layer, then the next layer); weights in whole layers from pageable memory,
double-buffered; KV offloaded from two cache lines; activations offloaded between layers.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.schedulers.passes import HIDDEN_SLOTS, KV_LINES, Pass, Rows

LINES = 2
"""Prompts' KV that the GPU holds at a time, in micro-batches (released code), and their activations."""

POOLS = {HIDDEN_SLOTS: LINES, KV_LINES: LINES}

Attention = Callable[[Pass, int, Rows], None]
"""Launches attention of one layer for one micro-batch, from qkv.j to attn.j."""


def zigzag(p: Pass) -> None:
    """Prefill with the KV cache on the host.

    The copy of layer i + 1 is launched behind the activations of layer i's first two micro-batches:
    in the one H2D queue it would otherwise keep the GPU from starting. Where all micro-batches fit
    into the activation slots they stay on the GPU.
    """
    swaps = len(p.rows) > LINES
    slots: dict[int, int] = {}
    embedded: tuple[int, ...] = ()
    for i in p.layers:
        for k, r in enumerate(p.rows):
            if i == 0:
                slots[k] = p.embed(r, takes=((HIDDEN_SLOTS, 1),))
                embedded = (slots[k],)
            elif swaps:
                # Behind the last embedding: it takes slots on another lane, and if layer 1 had them
                # all before, layer 0 would never end.
                slots[k] = p.hidden_to_gpu(i, r, takes=((HIDDEN_SLOTS, 1),), after=embedded if i == 1 and k == 0 else ())
            if k == min(1, p.last):
                p.weights.layer_to_gpu(i + 1)
            _layer(p, i, r)
            if i == p.sizes.layers - 1:
                p.sample(r, releases=(slots[k],))
            elif swaps:
                p.hidden_to_cpu(i, r, releases=(slots[k],))


def _layer(p: Pass, i: int, r: Rows) -> None:
    line = p.pre_attn(i, r, takes=((KV_LINES, 1),))
    # The line is free when its attention and its copy are over: the copy waits for the attention.
    attended = p.attn_prefill(i, r)
    p.kv_to_cpu(i, r, after=(attended,), releases=(line,))
    p.post_attn(i, r)


def attend_prompt(p: Pass, i: int, r: Rows) -> None:
    """Prompt attention, with the cache on the GPU."""
    p.attn_prefill(i, r, cached=True)


def layer_by_layer(p: Pass, attend: Attention) -> None:
    """All micro-batches through a layer, one after the other, while the next layer's weights come whole."""
    for i in p.layers:
        p.weights.layer_to_gpu(i + 1)
        for r in p.rows:
            p.begin(i, r)
            attend(p, i, r)
            p.finish(i, r)
