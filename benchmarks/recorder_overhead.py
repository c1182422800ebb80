"""What `traces.record` costs a decode: `flock -x LOCK python benchmarks/recorder_overhead.py [DIR]`.

The model decodes the same tokens with and without the recorder, in turn (plain, recorded, recorded, plain, ...), so that drifts of the
machine's speed fall on both. A measurement is the wall time of all decode steps, and, where recorded, of making the rows at the end.
Prints the median ratio of neighbouring measurements with a bootstrap interval. The bundled model is the hard case: its steps are
short, and every layer of it has a router. A second line is for a wider model with random weights.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

import traces
from traces import bundled


def decode(model: Any, ids: Any, steps: int, recorded: bool) -> float:
    """Seconds of `steps` decode steps after a prefill of ids [sequences, tokens]."""
    fed = ids[:, :1]
    with torch.no_grad(), ExitStack() as stack:
        recording = stack.enter_context(traces.record(model, ends=())) if recorded else None
        cache = model(ids, use_cache=True).past_key_values
        began = time.perf_counter()
        for _ in range(steps):
            model(fed, past_key_values=cache, use_cache=True)
        if recording is not None:
            recording.routing()
        return time.perf_counter() - began


def overhead(model: Any, sequences: int, steps: int, pairs: int) -> str:
    """One line of results."""
    ids = torch.arange(sequences * 32).view(sequences, 32) % 250
    decode(model, ids, steps, True), decode(model, ids, steps, False)
    ratios, plain = [], []
    for i in range(pairs):
        order = (False, True) if i % 2 == 0 else (True, False)
        spent = {recorded: decode(model, ids, steps, recorded) for recorded in order}
        ratios.append(spent[True] / spent[False] - 1)
        plain.append(spent[False] / steps)
    draws = np.median(np.random.default_rng(0).choice(ratios, (2000, pairs)), axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    found = f"{100 * np.median(ratios):+.2f} % ({100 * low:+.2f} .. {100 * high:+.2f})"
    return f"{sequences:3d} sequences, {1e3 * np.median(plain):7.2f} ms a step without: {found}, {pairs} pairs of {steps} steps"


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
    parse.add_argument("--pairs", type=int, default=24)
    parse.add_argument("--steps", type=int, default=64)
    asked = parse.parse_args()
    torch.set_num_threads(1)
    for name, model in (("bundled", MixtralForCausalLM.from_pretrained(asked.directory, dtype=torch.float32).eval()), ("wide", wide())):
        for sequences in (1, 16):
            print(f"{name:8s}", overhead(model, sequences, asked.steps, asked.pairs), flush=True)


if __name__ == "__main__":
    main()
