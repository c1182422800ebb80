"""`python -m traces.train.bundle DIR -o OUT`: what the package carries: the checkpoint, and its routing on held-out text.

Requests are slices of held-out modules with log-normal prompt and output lengths. They run in batches under `transformers`: a padded
prefill, then decode steps that are fed the text's own next bytes, so that every row is routing of real text and
no sampler has a part in it. A request is over where its length is reached; the batch goes on without it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from traces import record
from traces.routing import read_routing
from traces.train import corpus
from traces.train.corpus import BOUNDARY
from traces.train.export import CONFIG, WEIGHTS

ROUTING, CARD = "routing.parquet", "scores.json"


@dataclass(frozen=True, slots=True)
class Load:
    """The requests: how many, in batches of how many, and their lengths in tokens (median, sigma of the logarithm, least, most)."""

    requests: int = 160
    batch: int = 16
    prompt: tuple[float, float, int, int] = (160, 0.7, 16, 512)
    output: tuple[float, float, int, int] = (96, 0.7, 8, 384)
    seed: int = 0


def requests(load: Load) -> list[tuple[NDArray[np.int64], int]]:
    """Text and prompt length of each request; the text goes on for one token beyond the last that is fed. Slices begin with a line."""
    draw = np.random.default_rng(load.seed)
    text = corpus.tokens(True).astype(np.int64)
    lines = np.flatnonzero(text[:-1] == ord("\n")) + 1
    sizes = [_lengths(draw, load.requests, *how) for how in (load.prompt, load.output)]
    starts = draw.choice(lines[lines < len(text) - 1024], load.requests, replace=False)
    return [(text[s : s + p + o], p) for s, p, o in zip(starts.tolist(), *(n.tolist() for n in sizes), strict=True)]


def _lengths(draw: np.random.Generator, count: int, median: float, sigma: float, least: int, most: int) -> NDArray[np.int64]:
    return np.clip(np.round(draw.lognormal(np.log(median), sigma, count)), least, most).astype(np.int64)


def run_batch(model: Any, group: list[tuple[NDArray[np.int64], int]]) -> None:
    """Prefill with padding on the left, then feed each next token; `BOUNDARY` ends a request (the recorder leaves it out)."""
    longest = max(p for _, p in group)
    ids = torch.full((len(group), longest), BOUNDARY + 1)
    mask = torch.zeros_like(ids)
    for row, (text, p) in enumerate(group):
        ids[row, longest - p :] = torch.from_numpy(text[:p])
        mask[row, longest - p :] = 1
    position = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model(ids, attention_mask=mask, position_ids=position, use_cache=True).past_key_values
    lengths = torch.tensor([p for _, p in group])[:, None]
    for step in range(max(len(text) - p for text, p in group) - 1):
        fed = [int(text[p + step]) if p + step < len(text) - 1 else BOUNDARY for text, p in group]
        mask = torch.cat((mask, torch.ones(len(group), 1, dtype=mask.dtype)), 1)
        model(torch.tensor(fed)[:, None], attention_mask=mask, position_ids=lengths + step, past_key_values=cache, use_cache=True)


def main(arguments: list[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m traces.train.bundle", description=__doc__)
    parse.add_argument("trained", type=Path, help="directory that python -m traces.train wrote")
    parse.add_argument("-o", "--out", type=Path, required=True)
    asked = parse.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG, CARD):
        shutil.copyfile(asked.trained / name, asked.out / name)
    rows = record_routing(asked.out, asked.out / ROUTING, Load())
    sizes = {name: (asked.out / name).stat().st_size for name in (WEIGHTS, ROUTING)}
    print(json.dumps({"rows": rows, "bytes": sizes}))
    return 0


def record_routing(directory: Path, out: Path, load: Load) -> int:
    """Record the load's routing by the model of a directory; returns the rows."""
    from transformers import MixtralForCausalLM

    torch.set_num_threads(1)
    model = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.train(False)
    everything = requests(load)
    with torch.no_grad(), record(model, out, name="tandem-stdlib-moe", ends=[BOUNDARY]):
        for first in range(0, load.requests, load.batch):
            run_batch(model, everything[first : first + load.batch])
    return len(read_routing(out))


if __name__ == "__main__":
    sys.exit(main())
