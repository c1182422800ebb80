"""One colour an op, in every figure alike.

Built on the Okabe-Ito palette, which people with colour-blindness tell apart: blues compute on the
GPU, purple is attention on the CPU, oranges move weights, greens move activations, reds move KV.
Figures also write the op's name into bars that have room.
"""

from __future__ import annotations

import hashlib

OP_COLOURS = {
    "embed": "#A9CBE8", "pre_attn": "#56B4E9", "attn_prefill": "#12436D", "post_attn": "#0072B2", "sample": "#7A73B8",
    "attn_decode": "#CC79A7",
    "layer_to_gpu": "#BF7A0A", "page_to_gpu": "#E69F00", "page_to_pin": "#F2D06B",
    "offload_qkv": "#009E73", "load_hidden": "#74C9AE", "hidden_to_cpu": "#3E7F52", "hidden_to_gpu": "#A3D39C",
    "kv_to_cpu": "#D55E00", "kv_to_gpu": "#F0A07C",
    "timer": "#B4B8BF", "join": "#B4B8BF", "": "#D5D8DD",
}  # fmt: skip
OTHERS = ("#8C6D46", "#B59A6B", "#5F7D8C", "#94A7B0", "#8B5A8C", "#C29BC4")
SIMULATED = "#0072B2"
MEASURED = "#D55E00"


def colour(op: str) -> str:
    """The op's colour; an op that is not ours gets one by its name, the same in each run."""
    if op in OP_COLOURS:
        return OP_COLOURS[op]
    return OTHERS[hashlib.sha256(op.encode()).digest()[0] % len(OTHERS)]


def ink(background: str) -> str:
    """Black or white, whichever reads better on `background` (relative luminance of WCAG 2)."""
    channels = (int(background[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return "#1B1F24" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.25 else "#FFFFFF"
