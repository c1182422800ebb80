"""Real prompts that every computer has: slices of the Python standard library's own text, as byte tokens.

They come from modules that the bundled model was never trained on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from traces.train.corpus import HELD_OUT, library


@cache
def corpus() -> bytes:
    """The modules' text, one after another. It depends on the Python version."""
    return b"\n".join(path.read_bytes() for name in HELD_OUT if (path := library() / name).is_file())


def byte_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """One prompt a length, as byte values 0..255, cut at seeded places that start a line."""
    text = corpus()
    draw = random.Random(seed)
    prompts = []
    for length in lengths:
        cut = text.find(b"\n", draw.randrange(len(text) - length - 4096)) + 1
        prompts.append(list(text[cut : cut + length]))
        assert len(prompts[-1]) == length, f"corpus of {len(text)} bytes is too short for a prompt of {length}"
    return prompts
