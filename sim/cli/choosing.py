"""`policy`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sim.cli import compiling, options, output
from sim.errors import UserError

if TYPE_CHECKING:
    from sim.machines import Machine
    from sim.models import ModelSpec
    from sim.policy import Found
    from sim.policy.optimum import Objective
    from sim.policy.paper import Form
    from sim.workloads import Workload


@dataclass(frozen=True, slots=True)
class Paper:
    """Inputs of paper mode, as they were given."""

    cpu_memory_gib: float | None
    cpu_bandwidth: float | None
    form: str


def paper_arguments(wanted: bool, cpu_memory: float | None, cpu_bandwidth: float | None, form: str | None) -> Paper | None:
    """None where paper mode is not wanted. Raises UserError for a flag of its without it."""
    given = {"--cpu-memory": cpu_memory, "--cpu-bandwidth": cpu_bandwidth, "--memory-form": form}
    for flag, value in given.items():
        if value is not None and not wanted:
            raise UserError(f"{flag}: is for --paper-mode; give that too, or change the machine's YAML")
        if isinstance(value, float) and value <= 0:
            raise UserError(f"{flag}: is {value:g}; more than 0 is needed")
    return Paper(cpu_memory, cpu_bandwidth, form or "t4") if wanted else None


def choose(
    model: str, machine: str, workload: str, *, gen: int | None, objective: str, refine: int, padded: bool, seed: int, paper: Paper | None,
    to: Path | None, cached: bool, as_json: bool,
) -> None:  # fmt: skip

    output.check_writable("-o", to, (".yaml", ".yml"))
    found, what = ask(
        model, machine, workload, gen=gen, objective=objective, refine=refine, padded=padded, seed=seed, paper=paper, cached=cached
    )
    if to is not None:
        write(found, to, what)
    if as_json:
        output.print_json(found.as_dict())
    else:
        show(found, what)


def ask(
    model: str, machine: str, workload: str, *, gen: int | None, objective: str, refine: int, padded: bool, seed: int, paper: Paper | None,
    cached: bool,
) -> tuple[Found, str]:  # fmt: skip
    """The answer, kept or found now, and what the question was. Raises UserError where nothing fits."""
    from sim import machines, models
    from sim.policy import stored

    if paper is not None and objective != "throughput":
        raise UserError(f"--objective: is {objective}; the released optimiser knows throughput only")
    spec, box, load = models.load(model), machines.load(machine), options.traffic(workload, gen, padded)
    arguments = {"objective": objective, "refine": refine, "seed": seed, "paper": asdict(paper) if paper else None}
    with output.progress(f"searching {spec.name} on {box.name}") as say, compiling.told():
        compute = _paper(spec, box, load, paper) if paper else _search(spec, box, load, cast("Objective", objective), refine, seed, say)
        found, remark = stored.answer(stored.key(spec, box, load, arguments), compute) if cached else (compute(), "")
    if remark:
        output.note(remark)
    return found, f"{spec.name} on {box.name}, {load.name}, {load.longest_generation} tokens to generate"


def _paper(model: ModelSpec, machine: Machine, workload: Workload, paper: Paper) -> Callable[[], Found]:
    def compute() -> Found:
        from sim.policy.paper import case, found

        asked = case(
            model, machine, workload, cpu_memory_gib=paper.cpu_memory_gib, cpu_bandwidth=paper.cpu_bandwidth, form=cast("Form", paper.form)
        )
        return found(asked, machine, workload.padded)

    return compute


def _search(
    model: ModelSpec, machine: Machine, workload: Workload, objective: Objective, refine: int, seed: int, say: Callable[[str], None]
) -> Callable[[], Found]:
    def compute() -> Found:
        from sim.policy import search

        return search(model, machine, workload, objective, refine=refine, seed=seed, say=say)

    return compute


def write(found: Found, path: Path, what: str) -> None:
    """The policy as `run --policy` reads it."""
    import yaml

    from traces.files import replacing

    values = found.policy.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    with replacing(path) as part:
        part.write_text(f"# python -m sim policy: {what}\n" + yaml.safe_dump(values, sort_keys=False))


def show(found: Found, what: str) -> None:
    p = found.policy
    rows = [
        ("scheduler", p.scheduler), ("batch", f"{p.batch:,}: {p.microbatches} micro-batches of {p.microbatch}"),
        ("prefill micro-batch", p.prefill_rows), ("weight pages a layer", p.pages or p.microbatches),
        ("static experts a layer", p.static_experts), ("decode attention", p.attention),
        ("predicted", f"{found.predicted_tokens_per_s:.4g} tokens/s"),
        ("roofline bound", f"{found.hrm_bound_tokens_per_s:.4g} tokens/s"),
        *([("cost", f"{found.usd_per_million_tokens:.3g} $ a million tokens")] if found.usd_per_million_tokens is not None else []),
        ("bound by", found.binding_constraint),
        *((f"memory {home}", _consumers(consumers)) for home, consumers in found.memory.items()),
        ("searched", _searched(found)), ("wall", output.seconds(found.wall_s)),
    ]  # fmt: skip
    output.print_table(f"{what}: best for {found.objective}", ("", "value"), rows)


def _consumers(consumers: dict[str, int]) -> str:
    parts = ", ".join(f"{name} {output.size(b)}" for name, b in consumers.items() if b)
    return f"{output.size(sum(consumers.values()))}" + (f": {parts}" if parts else "")


def _searched(found: Found) -> str:
    s = found.searched
    if "points" not in s:
        return f"as the released optimiser does, memory form {s['memory_form']}"
    return f"{s['points']:,} policies by bound ({s['evaluated']:,} evaluated, the rest excluded), {len(s['simulated'])} simulated"
