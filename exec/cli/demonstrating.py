"""`demo`: the main job on real input, with a model that has learnt something.

The model is the bundled one (docs/bundled-model.md): its weights are trained, so its routers choose as routers do, the simulation is
driven by real routing, and what it generates can be read. It is small: waking a thread and calling a kernel, little of a larger
model's tasks, is much of its. So after the usual calibration, which is made with tiny-mixtral's shapes, `small_rig` corrects the profile
by a few short runs of this model, none of them the run that is shown. And it would fit the laptop rig's device: the demo's has less
memory than the model needs, behind slower links, so that weights are paged because they must be.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.cli import output
from traces import bundled

MODEL, NAME, SCHEDULER = bundled.MODEL, "tandem-stdlib-moe", "cgopipe"
BATCH, MICROBATCH, PREFILL, PROMPT, GEN = 96, 16, 4, 192, 96
LINK_BYTES_PER_S = 4e8
"""A layer's experts (3.1 MB) take 8 ms to cross the link, several times what computing a layer for one micro-batch takes."""
DEVICE_BYTES = 16 << 20
"""The model's weights are 20 MB."""
PROBES = ((48, 12, 150, 40), (60, 20, 200, 24), (16, 4, 160, 24))
"""Short runs that correct the profile: batch, micro-batch, longest prompt, tokens. Smaller micro-batches than the run's for its prefill."""
SHOWN = 3
"""Requests whose text is printed: the first ones."""


def demo(folder: Path, machine: Path | None, as_json: bool) -> None:
    from exec.calibration import profile
    from exec.calibration.reference import SLOWED, Reference
    from exec.execute import execute, simulated_twin, spec_of, timeline_of_twin, weights_of
    from exec.local import check_runs_here
    from sim import machines

    _make(folder)
    spec = replace(spec_of(str(MODEL)), name=NAME)
    weights = weights_of(str(MODEL), spec, 0)
    reference = Reference()
    with output.steps("demo: CGOPipe serves a small trained model, measured and simulated") as say:
        if machine is None:
            machine = folder / "profile.yaml"
            rig = machines.load_rig("laptop-rig")
            profile.write(profile.calibrate(rig, lambda text: say(f"calibrating this computer: {text}")), machine)
        here = machines.load(machine)
        check_runs_here(here)
        here = small_rig(here, spec, weights, lambda text: say(f"calibrating for the demo's model: {text}"))
        profile.write(here, folder / "rig.yaml")
        job = job_of(spec, here)
        say("really running it, on prompts cut from the Python standard library")
        before_s = reference.calm_s()
        measured = execute(job, weights, record_routing=True)
        pace = max(before_s, reference.seconds()) / reference.best_s
        say("simulating the same run, driven by the routing that it recorded")
        save(measured, folder / "routing.parquet", folder)
        simulated = simulated_twin(measured)
        timelines = (timeline_of_twin(simulated), measured.timeline)
        say("writing the report")
        report(folder, job, timelines, simulated, measured)
    texts = texts_of(job, measured)
    if as_json:
        page = str(folder / "report.html")
        output.print_json({"simulated": simulated.summary, "measured": measured.summary, "texts": texts, "report": page})
    else:
        show(simulated.summary, measured.summary, texts, folder)
    if pace > SLOWED:
        output.note(f"around the run this computer was {pace - 1:.0%} slower than at its best: other work is in what was measured")


def small_rig(here, spec, weights, say):
    """The same computer behind slower links, with a device that cannot hold the model, its op table corrected for the model."""
    from exec.calibration.insitu import Probe, corrected
    from exec.calibration.links import relink
    from sim.machines.schema import Memory

    rates = {"h2d": LINK_BYTES_PER_S, "d2h": LINK_BYTES_PER_S}
    found = corrected(relink(here, rates), spec, weights, say, tuple(Probe(SCHEDULER, *p, {}) for p in PROBES))
    device = Memory(bytes=DEVICE_BYTES, source="chosen for the demo: less than the weights of its model")
    return found.model_copy(update={"name": f"{here.name}, small", "memories": {**found.memories, "gpu": device}})


def job_of(spec, machine):
    from sim.job import prepare
    from sim.schedulers.policy import Policy
    from sim.workloads.lengths import Fixed, Uniform
    from sim.workloads.schema import Workload

    workload = Workload(
        name="stdlib", description="slices of the Python standard library as byte tokens", source="cut at seeded places, lengths uniform",
        prompt=Uniform(min=PROMPT // 3, max=PROMPT), generation=Fixed(tokens=GEN),
    )  # fmt: skip
    policy = Policy(batch=BATCH, microbatch=MICROBATCH, prefill_microbatch=min(PREFILL, MICROBATCH))
    return prepare(spec, machine, workload, SCHEDULER, policy)


def texts_of(job, measured) -> list[dict[str, str]]:
    """Prompt and what the model went on with, of the first requests."""
    from exec.execute import stdlib_prompts
    from exec.tokenizer import load_tokenizer

    decode = load_tokenizer(MODEL, job.model.vocab).decode
    prompts, tokens = stdlib_prompts(job), measured.outcome.tokens
    return [{"prompt": decode(prompts[i]), "generated": decode(tokens[i])} for i in range(SHOWN)]


def _make(folder: Path) -> None:
    from sim.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"-o {folder}: cannot be made ({e.strerror})") from None
    output.check_writable("-o", folder / "report.html")


def save(measured, routing: Path, folder: Path) -> None:
    from traces.routing import write_routing

    write_routing(routing, measured.outcome.routing)
    measured.log.write(folder / "log.jsonl")


def report(folder: Path, job, timelines, simulated, measured) -> None:
    from sim.report.page import write_report
    from sim.report.picture import write_picture
    from sim.timeline import dependencies_of
    from traces.timeline import write_timeline

    for name, timeline in zip(("simulated", "measured"), timelines, strict=True):
        write_timeline(folder / f"{name}.parquet", timeline)
    keys = ("model", "machine", "workload", "scheduler", "policy", "sources", "peak_bytes")
    own = ("makespan_s", "prefill_s", "decode_s", "tokens_per_s", "ttft_s", "tpot_s", "lower_bound_s")
    facts: dict[str, Any] = {k: measured.summary[k] for k in keys}
    facts["routing"] = "recorded by the measured run, and replayed in the simulation"
    facts["simulated"] = {k: simulated.summary[k] for k in own}
    facts["measured"] = {k: measured.summary[k] for k in own}
    write_report(folder / "report.html", *timelines, facts, dependencies_of(simulated.run))
    both = {"Simulated": timelines[0], "Measured": timelines[1]}
    for name in ("picture.png", "picture.svg"):
        write_picture(folder / name, both, step=_usual_step(timelines[1]), title="One decode step of CGOPipe, by both clocks")


def _usual_step(measured) -> int:
    """The decode step whose length is the median: any other may be one in which the computer did something else."""
    from sim.report.figures import step_ends

    steps, ends = step_ends(measured)
    lengths = [(int(b - a), int(step)) for step, a, b in zip(steps[1:], ends, ends[1:], strict=False) if step > 0]
    return sorted(lengths)[len(lengths) // 2][1]


def show(simulated: dict[str, Any], measured: dict[str, Any], texts: list[dict[str, str]], folder: Path) -> None:
    def row(name: str, key: str, text) -> tuple[str, ...]:
        a, b = simulated[key], measured[key]
        return (name, text(a), text(b), f"{a / b - 1:+.1%}" if b else "-")

    rows = [
        row("makespan", "makespan_s", output.seconds), row("prefill", "prefill_s", output.seconds),
        row("decode", "decode_s", output.seconds),
        row("TTFT, mean", "ttft_s", output.seconds), row("TPOT, mean", "tpot_s", output.seconds),
        row("tokens/s", "tokens_per_s", lambda v: f"{v:.4g}"),
        *((f"lane {n} busy", output.seconds(simulated["lanes"][n]["busy_s"]), output.seconds(v["busy_s"]),
           f"{simulated['lanes'][n]['busy_s'] / v['busy_s'] - 1:+.1%}") for n, v in measured["lanes"].items() if v["busy_s"]),
    ]  # fmt: skip
    run = f"{measured['scheduler']}: {measured['model']} on {measured['machine']}"
    title = f"{run} (clock: {measured['clock']}), {measured['generated_tokens']:,} tokens"
    output.print_table(title, ("", "simulated", "measured", "error"), rows, numeric=("simulated", "measured", "error"))
    print("\nWhat the model wrote, between « and »:")
    for text in texts:
        last = text["prompt"].rstrip("\n").splitlines()[-1:]
        print("".join(f"\n    {line}" for line in f"{''.join(last)}«{text['generated']}»".splitlines()))
    print(f"\nreport: {folder / 'report.html'} (open it in a browser)\nlog, routing, rig and timelines: {folder}")
