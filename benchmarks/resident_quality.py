"""What a router that leans towards resident experts costs in quality, and what it wins: the bundled model, really run.

    python benchmarks/resident_quality.py [--windows N] [--capacity 4] [--evict lfru] [--plot OUT.png] [--json]

Held-out text in windows of 1,024 bytes, each token scored given those before it. Every layer routes token by token, as a decode does: the
router sees what is resident, its choice goes to the residency table, and the next token sees what came of it. Nothing else of the model
is changed. All layers share one bonus, put together again after each window. Perplexity is per byte; its increase, with the standard
error over windows, is against the same windows without a bonus, which is the model as it is.

Routers: a bonus on plain logits; on logits as a share of each row's spread; by price (`kernels/router/priced.py`), fixed and adapting.
Prices are measured first, on training text (`resident_costs.py`), and so was the start of the adapting bonus. Where prices are
used, experts stay by the moving average of what the router wants; elsewhere by --evict.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import resident_costs
import torch
from numpy.typing import NDArray

from kernels.router.resident import Lean, Shards, route, shards
from sim.residency import Grant, Residency, policies
from sim.residency.eviction import Wanted
from traces import bundled
from traces.train import corpus
from traces.train.evaluate import windows

NO_MARGIN = 20.0
MARGIN = 1.5
"""Of the best logit less the mean: how far one that gives way may lie above the one that takes its place."""
START, GAIN, DECAY = 0.010, 2e-5, 0.98
"""Of the adapting bonus in nats, a token; and memory of what the router wants."""
WINDOW = 1024

Prices = NDArray[np.float32]


class Leaning:
    """A layer's router: choice with the bonus, and the cache that makes experts resident. costs: the layer's prices, or None."""

    def __init__(self, layer: int, top_k: int, lean: Lean, made: Shards, table: Residency, costs: Prices | None) -> None:
        self.layer, self.top_k, self.lean, self.shards, self.table, self.costs = layer, top_k, lean, made, table, costs
        self.experts = made.counts.shape[1]
        self.resident = np.zeros(self.experts, np.uint8)
        self.asked = self.hits = 0

    def choose(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """Experts and weights [tokens, k], one token after the other."""
        ids, weights = np.empty((len(logits), self.top_k), np.int16), np.empty((len(logits), self.top_k), np.float32)
        base = self.layer * self.experts
        for t in range(len(logits)):
            one = slice(t, t + 1)
            route(logits[one], self.resident, self.lean, self.shards, ids[one], weights[one], self.layer, costs=self.costs)
            grant = self.table.need(self.layer, ids[t].tolist())
            assert isinstance(grant, Grant), grant
            self.table.release(self.layer)
            self.asked += self.top_k
            self.hits += len(grant.hits)
            if grant.missed:
                self.resident[:] = [self.table.here(base + e) for e in range(self.experts)]
        return ids, weights


def run(model: Any, text: NDArray[np.int64], lean: Lean, evict: str, capacity: int, costs: Prices | None) -> dict[str, Any]:
    """Scores one router on all windows; the cache goes on from window to window. losses: nats a byte of each."""
    c = model.config
    layers, experts, k = c.num_hidden_layers, c.num_local_experts, c.num_experts_per_tok
    made = shards(layers, experts, lean, costs is not None)  # one of each layer, as if each were a thread
    evictor = Wanted(experts, False, made.affinity) if evict == "wanted" else policies.evictor(evict, experts)
    table = Residency(layers, experts, capacity, k, evictor)
    routers = [Leaning(i, k, lean, made, table, None if costs is None else costs[i]) for i in range(layers)]
    hooks = [layer.mlp.gate.register_forward_hook(_hook(r)) for layer, r in zip(model.model.layers, routers, strict=True)]
    losses = []
    with torch.no_grad():
        for row in text:
            ids = torch.from_numpy(row)[None]
            logits = model(ids[:, :-1]).logits[0].float()
            losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])))
            made.bonus[:] = made.bonus.mean()
    for hook in hooks:
        hook.remove()
    hits = sum(r.hits for r in routers) / sum(r.asked for r in routers)
    return {"hit_rate": hits, "losses": losses, "perplexity": math.exp(float(np.mean(losses))), "last_bonus": float(made.bonus[0, 0])}


def _hook(router: Leaning) -> Any:
    def leaning(module: Any, inputs: Any, output: Any) -> Any:
        logits = output[0]
        ids, weights = router.choose(logits.float().numpy())
        return logits, torch.from_numpy(weights).to(output[1].dtype), torch.from_numpy(ids.astype(np.int64))

    return leaning


def grid() -> list[tuple[str, Lean]]:
    plain = [("logits", Lean(b, NO_MARGIN)) for b in (0.0, 0.25, 0.5, 0.75)]
    relative = [("relative", Lean(b, NO_MARGIN, relative=True)) for b in (0.2, 0.3, 0.4, 0.5)]
    priced = [("price", Lean(b, MARGIN, decay=DECAY, relative=True)) for b in (0.003, 0.006, 0.01, 0.015)]
    adaptive = [("price, adaptive", Lean(START, MARGIN, t, GAIN, DECAY, relative=True)) for t in (0.65, 0.7, 0.71, 0.75)]
    return plain + relative + priced + adaptive


def measure(count: int, capacity: int, evict: str, training: int) -> list[dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bundled.MODEL, dtype=torch.float32).eval().requires_grad_(False)
    costs = resident_costs.measure(model, training)
    held_out, starts = corpus.tokens(True).astype(np.int64), windows(WINDOW, 1)
    text = np.stack([held_out[s : s + WINDOW + 1] for s in starts[:: max(1, len(starts) // count)][:count].tolist()])
    rows: list[dict[str, Any]] = []
    for name, lean in grid():
        prices = costs if name.startswith("price") else None
        keep = evict if prices is None else "wanted"
        rows.append({"router": name, "evict": keep, **lean._asdict(), **run(model, text, lean, keep, capacity, prices)})
        more = np.subtract(rows[-1]["losses"], rows[0]["losses"])
        rows[-1] |= {"increase": math.expm1(more.mean()), "standard_error": float(more.std() / math.sqrt(len(more)))}
        print(f"{len(rows)} of {len(grid())}", file=sys.stderr, flush=True)
    return rows


LABELS = {"logits": "bonus on logits", "relative": "share of the spread", "price": "by price", "price, adaptive": "by price, adapting"}


def plot(rows: list[dict[str, Any]], capacity: int, out: Path) -> None:
    """Pareto plot: perplexity against hit rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, mark in (("logits", "o"), ("relative", "s"), ("price", "^"), ("price, adaptive", "D")):
        part = sorted((r for r in rows if r["router"] == name), key=lambda r: r["hit_rate"])
        axes.plot([r["hit_rate"] for r in part], [100 * r["increase"] for r in part], mark + "-", label=LABELS[name], alpha=0.8)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
    axes.set_ylim(-0.2, 8)
    axes.set(xlabel="hit rate", ylabel="perplexity increase, %", title=f"Bundled model, {capacity} of 16 experts of each layer resident")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--training", type=int, default=48, help="windows of training text that prices are measured on")
    parser.add_argument("--capacity", type=int, default=4)
    parser.add_argument("--evict", default="lfru", choices=tuple(policies.ONLINE))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(a.windows, a.capacity, a.evict, a.training)
    if a.plot:
        plot(rows, a.capacity, a.plot)
    if a.json:
        print(json.dumps({"windows": a.windows, "training": a.training, "capacity": a.capacity, "evict": a.evict, "rows": rows}))
        return
    print("router              bonus  target  margin   hit rate  perplexity  increase     +/-  last bonus")
    for r in rows:
        target = f"{r['target']:.2f}" if r["target"] >= 0 else "-"
        margin = "-" if r["margin"] >= NO_MARGIN else f"{r['margin']:.2f}"
        scores = f"{r['hit_rate']:10.3f} {r['perplexity']:11.4f} {r['increase']:+9.2%} {r['standard_error']:7.2%} {r['last_bonus']:11.4f}"
        print(f"{r['router']:19} {r['bonus']:5.3f} {target:>7} {margin:>7} {scores}")


if __name__ == "__main__":
    main()
