"""The page of `place`: every policy's scores, load by GPU and layer before and after, and which GPUs serve a token together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sim.placement import Placement, Problem, measures
from sim.placement.problem import Floats, Sample
from sim.placement.recorded import Recorded
from sim.placement.sets import token_sets
from sim.report import charts
from sim.report.embed import packed
from sim.report.figures import seconds_text
from sim.report.page import document, scripts
from sim.report.sections import facts_tables, table
from traces.files import replacing

STEPS = 64
"""A heat map's load is told in so many steps of the ideal load."""
TOKENS = 1024
"""Recorded tokens from which it is told who serves together; more would change nothing that one sees."""
MOST_UNITS = 32
"""GPUs that a table of pairs has room for; of more than that their nodes are shown."""
MOST_COPIES = 200_000
"""Copies of all placements together up to which the page tells each GPU's experts."""


@dataclass(frozen=True, slots=True)
class Scene:
    """problem; test: the load to show, or None: the load that was fitted; names, rows (`place --json`), placements: of the policies."""

    problem: Problem
    test: Recorded | None
    names: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    placements: Sequence[Placement]

    @property
    def counts(self) -> Floats:
        windows = self.test.windows if self.test is not None else self.problem.windows
        return np.asarray(windows.sum(axis=0))

    @property
    def sample(self) -> Sample | None:
        return self.test.sample if self.test is not None and self.test.sample is not None else self.problem.sample

    @property
    def all(self) -> list[tuple[str, Placement]]:
        """The current placement, then those of the policies."""
        assert self.problem.current is not None
        return [("Now", self.problem.current), *zip(self.names, self.placements, strict=True)]


def write_page(path: Path, scene: Scene, facts: Mapping[str, Any]) -> None:
    """Write the page to `path`, whole or not at all; facts: what was placed on what, as `place --json` prints it."""
    title = f"{facts['layers']} layers of {facts['experts']} experts on {facts['gpus']} GPUs of {facts['machine']}"
    data = _data(scene)
    lead = "Where experts live, by policy: " + ", ".join(scene.names) + "."
    shown = {k: v for k, v in facts.items() if k not in ("results", "slots", "memory")} | {"slots": _range(facts["slots"])}
    body = "\n".join([
        f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>', _scores(scene), _heat(scene), _together(data),
        facts_tables(shown),
    ])  # fmt: skip
    with replacing(path) as part:
        part.write_text(document(title, body, scripts(data, "placement.js")), encoding="utf-8")


def _data(scene: Scene) -> dict[str, Any]:
    """What placement.js reads."""
    gpus = scene.problem.gpus
    small = sum(int(p.held.sum()) for _, p in scene.all) <= MOST_COPIES
    unit, number = ("GPU", np.arange(len(gpus))) if len(gpus) <= MOST_UNITS else ("node", gpus.node)
    placements = []
    for name, placement in scene.all:
        relative = _relative(placement, scene)
        entry: dict[str, Any] = {
            "name": name, "balancedness": measures.balancedness(placement, scene.counts, gpus),
            "load": packed(np.clip(np.rint(relative * STEPS), 0, 255), "<u1"),
        }  # fmt: skip
        if small:
            entry["experts"] = placement.to_json()["layers"]
        if scene.sample is not None and number.max() < MOST_UNITS:
            pairs = together(placement, scene.sample, scene.problem, number)
            entry |= {"together": np.round(pairs, 4).tolist(), "touched": float(np.trace(pairs))}
        placements.append(entry)
    best = max(range(1, len(placements)), key=lambda i: placements[i]["balancedness"])
    return {
        "placements": placements, "gpus": list(gpus.names), "layers": scene.problem.layers, "steps": STEPS, "unit": unit, "first": best,
        "charts": _charts(scene),
    }  # fmt: skip


def _relative(placement: Placement, scene: Scene) -> Floats:
    """Each GPU's load over its ideal one [layers, gpus]; 0 in layers without tokens."""
    gpus = scene.problem.gpus
    loads = measures.gpu_loads(placement, scene.counts, gpus) / gpus.speed
    ideal = scene.counts.sum(axis=1, keepdims=True) / gpus.speed.sum()
    return np.asarray(np.divide(loads, ideal, out=np.zeros_like(loads), where=ideal > 0))


def together(placement: Placement, sample: Sample, problem: Problem, unit: np.ndarray) -> Floats:
    """Share of the tokens of a layer that both units serve, mean over layers [units, units]; the diagonal: that one serves.

    Copies are drawn independently, as in `measures.touched`: a token misses units a and b with the product over its experts of
    1 - (share of the expert on a) - (share on b).
    """
    rows = np.unique(np.linspace(0, len(sample) - 1, min(TOKENS, len(sample))).astype(np.int64))
    taken = Sample(sample.experts[rows], sample.window[rows])
    units = int(unit.max()) + 1
    found = np.zeros((units, units))
    for layer in range(problem.layers):
        chosen, share = token_sets(taken, layer)
        by_region, weight = measures.served(placement.held[layer], problem.gpus)
        for rows_, w in zip(by_region @ np.eye(units)[unit], weight, strict=True):
            of_token = rows_[chosen]  # [sets, k, units]
            alone = np.prod(1.0 - of_token, axis=1)
            for a in range(units):
                neither = np.prod(1.0 - of_token[:, :, a : a + 1] - of_token, axis=1)
                neither[:, a] = alone[:, a]
                found[a] += w * (share @ (1.0 - alone[:, a : a + 1] - alone + neither))
    return found / problem.layers


def _charts(scene: Scene) -> dict[str, Any]:
    layers = {name: _by_layer(placement, scene) for name, placement in zip(scene.names, scene.placements, strict=True)}
    found = {"by-layer": charts.layers(layers)}
    if scene.sample is not None:
        found["front"] = charts.front([(r["policy"], r["gpus_touched"], _balance(r)) for r in scene.rows])
    return found


def _by_layer(placement: Placement, scene: Scene) -> list[float]:
    """Balancedness of each layer."""
    most = _relative(placement, scene).max(axis=1)
    return [1.0 / m if m > 0 else 1.0 for m in most.tolist()]


def _balance(row: Mapping[str, Any]) -> float:
    return float(row["balancedness"] if row["balancedness_test"] is None else row["balancedness_test"])


def _scores(scene: Scene) -> str:
    head = ("policy", "balancedness", "on test load", "GPUs touched", "regions touched", "copies moved", "took")
    rows = [
        (escape(r["policy"]), *(_figure(r[k]) for k in ("balancedness", "balancedness_test", "gpus_touched", "regions_touched")),
         f"{r['moved']:,}", seconds_text(r["wall_s"]))
        for r in scene.rows
    ]  # fmt: skip
    front = ""
    if scene.sample is not None:
        note = '<p class="note">Up and to the left is better.</p>'
        front = f'<section><h2>Load against affinity</h2>{note}<div class="chart" id="front"></div></section>'
    scores = f"<section><h2>Scores</h2>{table(head, rows, range(1, len(head)))}</section>"
    layers = '<section><h2>Balancedness by layer</h2><div class="chart" id="by-layer"></div></section>'
    return f'{scores}\n<div class="pair">{front}{layers}</div>'


def _figure(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.3f}"


def _heat(scene: Scene) -> str:
    what = "the test load, which no policy saw" if scene.test is not None else "the load that was fitted"
    return f"""<section>
<h2>Load by GPU and layer</h2>
<p class="note">On {what}: each GPU's time in a layer over the ideal one. A layer waits for its reddest GPU. Point at a cell for more.</p>
<div class="tools"><label>After <select id="policy"></select></label>
<span>load over ideal <canvas id="scale" style="width:260px;height:30px;vertical-align:middle"></canvas></span></div>
<div class="pair">{_canvas("before", "load before")}{_canvas("after", "load after")}</div>
<div id="tip"></div>
</section>"""


def _together(data: Mapping[str, Any]) -> str:
    if "together" not in data["placements"][0]:
        return ""
    unit = data["unit"]
    grids = _canvas("pairs-before", f"{unit}s that share tokens before") + _canvas("pairs-after", f"{unit}s that share tokens after")
    return f"""<section>
<h2>Who serves a token together</h2>
<p class="note">Share of tokens that two {unit}s both serve in a layer, mean over layers: what has to be exchanged between them.</p>
<div class="pair">{grids}</div>
</section>"""


def _canvas(name: str, label: str) -> str:
    canvas = f'<canvas id="{name}" style="width:100%" role="img" aria-label="{label}"></canvas>'
    return f'<div><p class="note" id="{name}-title"></p>{canvas}</div>'


def _range(slots: Sequence[int]) -> str:
    return f"{min(slots)}" if min(slots) == max(slots) else f"{min(slots)} to {max(slots)}"
