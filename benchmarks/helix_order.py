"""Petals, SWARM and max-flow placement on Helix's two cluster files: flow, what is served by flow and by each one's own routing,
and the compute bound.

python benchmarks/helix_order.py FOLDER [SECONDS]     FOLDER holds Helix's cluster and timing files
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from sim import clusters
from sim.clusters.importers import helix
from sim.placement import measured
from sim.placement.max_flow import MaxFlow
from sim.placement.petals import Petals
from sim.placement.spans import SpanPolicy, SpanProblem, Spans, max_flow
from sim.placement.swarm import Swarm
from sim.swarm.pipelines import FlowRouter, Router, SpanRouter, SwarmRouter, serve

ROUTERS: dict[str, Callable[[SpanProblem, Spans], Router]] = {"petals": SpanRouter, "swarm": SwarmRouter}
"""How those route that do not by flow."""
CASES = (("cluster10.ini", "llama1_30b"), ("cluster42.ini", "llama2_70b"))


def problem_of(folder: Path, file: str, model: str) -> SpanProblem:
    cluster = clusters.load(folder / file)
    kinds = {helix.node_kind(cluster, n) for n in cluster.node if cluster.node[n].group.gpu}
    profiles = helix.read_profiles(folder, model, kinds)
    return measured.problem(clusters.Network(cluster), measured.MODELS[model], profiles)


def main(folder: Path, seconds: float) -> None:
    print("| cluster | model | placement | max-flow | served, routed by flow | share of the flow | served, own routing | compute bound |")
    print("|---|---|---|---|---|---|---|---|")
    for file, model in CASES:
        problem = problem_of(folder, file, model)
        policies: dict[str, SpanPolicy] = {"max-flow": MaxFlow(seconds), "petals": Petals(), "swarm": Swarm()}
        for name, policy in policies.items():
            spans = policy.spans(problem, lambda line: print(f"  {line}", file=sys.stderr))
            flow = max_flow(problem, spans)
            served = serve(problem, spans, FlowRouter(flow)).tokens_per_s
            own = serve(problem, spans, ROUTERS[name](problem, spans)).tokens_per_s if name in ROUTERS else served
            figures = f"{flow.value:,.0f} | {served:,.0f} | {served / flow.value:.1%} | {own:,.0f} | {problem.compute_bound():,.0f}"
            print(f"| {file} | {model} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 60.0)
