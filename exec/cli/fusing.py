"""`fused`."""

from __future__ import annotations

from sim.cli import compiling, output
from sim.errors import UserError


def fused(model: str, tokens: int, threads: int, seed: int, as_json: bool) -> None:
    from exec.fused_twin import twin
    from sim import models

    spec = models.load(model)
    if not spec.experts:
        raise UserError(f"--model {spec.name}: has no routed experts; a Mixture-of-Experts model is needed")
    with output.progress("running the layer on both clocks"), compiling.told():
        found = {"model": spec.name, "tokens": tokens, "threads": threads, **twin(spec, tokens, threads, seed).summary()}
    if as_json:
        output.print_json(found)
        return
    rows = [(t["op"], t["tiles"], output.seconds(t["measured_busy_s"]), output.seconds(t["simulated_busy_s"])) for t in found["tiles"]]
    rows.append(("makespan", "", output.seconds(found["measured_s"]), output.seconds(found["simulated_s"])))
    title = f"fused layer of {spec.name}, fp32, {tokens} tokens, {threads} threads: {found['tasks']} tasks, {found['skipped']} skipped"
    output.print_table(title, ("", "tiles", "measured", "simulated"), rows, ("tiles", "measured", "simulated"))
    print(f"simulated / measured - 1: {found['error']:+.1%}")
