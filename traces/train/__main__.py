"""`python -m traces.train -o DIR`: train the bundled model from its seed, score it, save it (docs/bundled-model.md)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from traces.train import corpus
from traces.train.evaluate import evaluate, report
from traces.train.export import load, save
from traces.train.loop import Recipe, train, trained
from traces.train.model import Config


def main(arguments: list[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m traces.train", description=__doc__)
    parse.add_argument("-o", "--out", type=Path, required=True, help="directory for the state file, the model and its scores")
    parse.add_argument("--dense", action="store_true", help="train the dense twin of the same arithmetic per token instead")
    parse.add_argument("--seed", type=int, default=Recipe().seed)
    parse.add_argument("--until", type=int, help="stop after this step of the schedule, to go on later or to compare the figures so far")
    asked = parse.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    config, recipe = Config(experts=1) if asked.dense else Config(), Recipe(seed=asked.seed)
    print(corpus.description(), config, recipe, sep="\n", flush=True)
    began = time.perf_counter()
    train(config, recipe, asked.out / "state.pt", asked.until)
    print(f"this run: {time.perf_counter() - began:.0f} s of training", flush=True)
    if asked.until is None or asked.until >= recipe.total:
        figures = finish(config, recipe, asked.out)
        (asked.out / "scores.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(json.dumps(figures, indent=2))
    return 0


def finish(config: Config, recipe: Recipe, out: Path) -> dict[str, Any]:
    """Save the model, unless it is the dense twin, and score what was saved: in float32, weights as they lie in the file."""
    facts = {"text": corpus.description(), "config": str(config), "recipe": str(recipe)}
    model = trained(config, out / "state.pt")
    if config.experts > 1:
        save(model, out, facts)
        model = load(out)
    size = sum(p.numel() for p in model.parameters())
    return {**facts, "parameters": size, **{f"context_{w}": report(evaluate(model, w, s)) for w, s in ((1024, 8), (256, 8))}}


if __name__ == "__main__":
    sys.exit(main())
