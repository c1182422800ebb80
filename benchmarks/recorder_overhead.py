"""What `traces.record` costs a decode: `flock -x LOCK python benchmarks/recorder_overhead.py [DIR]`.

One decode, in which two copies of the model on the same weights take turns (plain, recorded, recorded, plain, ...), so that drifts of the
machine's speed and the growing context fall on both. Making rows of what was kept is timed at the end and shared among the recorded
steps. Prints the median cost of a block of steps relative to its neighbours, with a bootstrap interval. The bundled model is
the hard case: its steps are short, and every layer has a router. The other is a wider model with random weights.
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

import traces
from traces import bundled

STEPS = 200
BLOCK = 25
"""Pairs that are added up: the recorder puts its tensors together every twenty steps or so; a median of single steps would not see it."""


def overhead(model: Any, sequences: int, rounds: int) -> str:
    """One line of results."""
    ids = torch.arange(sequences * 32).view(sequences, 32) % 250
    alone, heard = (deepcopy(model, {id(p): p for p in (*model.parameters(), *model.buffers())}) for _ in range(2))
    plain, recorded = [], []
    with torch.no_grad(), traces.record(heard, ends=()) as recording:
        for _ in range(rounds):
            cache = heard(ids, use_cache=True).past_key_values
            for i in range(STEPS):
                listens = i % 4 in (1, 2)
                (recorded if listens else plain).append(step(heard if listens else alone, ids[:, :1], cache))
        began = time.perf_counter()
        rows = recording.routing()
        rows_s = (time.perf_counter() - began) / len(recorded)
    assert int(rows.decode.sum()) == len(recorded) * sequences * rows.shape.layers, (int(rows.decode.sum()), len(recorded))
    took, usual = (np.add.reduceat(np.array(t), np.arange(0, len(t), BLOCK)) for t in (recorded, plain))
    ratios = (took + BLOCK * rows_s) / usual - 1
    draws = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    found = f"{100 * np.median(ratios):+.2f} % ({100 * low:+.2f} .. {100 * high:+.2f})"
    what = f"{sequences:3d} sequences, {1e3 * np.median(plain):7.3f} ms a step"
    return f"{what}: {found}, of that rows {1e6 * rows_s:.1f} us; {len(ratios)} blocks of {BLOCK} pairs"


def step(model: Any, fed: Any, cache: Any) -> float:
    """Seconds of a decode step."""
    began = time.perf_counter()
    model(fed, past_key_values=cache, use_cache=True)
    return time.perf_counter() - began


def wide() -> Any:
    """8 layers of hidden 512, 16 experts of width 512: steps of a length that small real models have on a CPU."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(
        vocab_size=258, hidden_size=512, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
        num_local_experts=16, num_experts_per_tok=2,
    )).eval()  # fmt: skip


def main() -> None:
    from transformers import MixtralForCausalLM

    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("directory", type=Path, nargs="?", default=bundled.MODEL)
    parse.add_argument("--rounds", type=int, default=8, help=f"decodes of {STEPS} steps of each model and batch")
    asked = parse.parse_args()
    torch.set_num_threads(1)
    for name, model in (("bundled", MixtralForCausalLM.from_pretrained(asked.directory, dtype=torch.float32).eval()), ("wide", wide())):
        for sequences in (1, 16):
            print(f"{name:8s}", overhead(model, sequences, asked.rounds if sequences == 1 else max(1, asked.rounds // 4)), flush=True)


if __name__ == "__main__":
    main()
