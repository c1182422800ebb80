"""The released optimiser's answers, as MoE-Lightning's artifact and runs of it give them."""

from __future__ import annotations

import pytest

from sim import machines, models, workloads
from sim.errors import UserError
from sim.machines.schema import Memory
from sim.policy import paper

GENS = (32, 64, 128, 256)
CASES = {
    ("t4", True, "t4", 176, 100): [(36, 14)] * 4,
    ("t4", True, "t4", 186, 100): [(36, 14)] * 4,
    ("t4", False, "t4", 185.5, 100): [(164, 19), (164, 19), (164, 14), (100, 15)],
    ("l4", True, "l4-padding", 184.29, 100): [(68, 16), (68, 15), (68, 13), (68, 11)],
    ("l4", False, "l4-padding", 182, 76): [(324, 14), (228, 16), (164, 16), (132, 12)],
}
"""(machine, padded, memory form, GiB of host memory, GB/s of it) -> micro-batch and their number, by generation."""


def ask(machine: str, padded: bool, form: paper.Form, memory: float | None, bandwidth: float | None, gen: int) -> paper.Case:
    load = workloads.load("mtbench").with_generation(gen)
    return paper.case(
        models.load("mixtral-8x7b"), machines.load(machine), load.with_padding() if padded else load,
        cpu_memory_gib=memory, cpu_bandwidth=bandwidth, form=form,
    )  # fmt: skip


@pytest.mark.parametrize(("case", "policies"), CASES.items(), ids=lambda c: "-".join(map(str, c)) if isinstance(c[0], str) else "")
def test_returns_the_published_policies(case, policies) -> None:
    found = [paper.optimise(ask(*case, gen)) for gen in GENS]
    assert [(f.microbatch, f.microbatches) for f in found] == policies


def test_terms_of_the_readme_s_policy() -> None:
    """324 x 14 on L4: 129.5 ms on the GPU and 25.7 ms on the CPU for each layer and step (reference, 2.3)."""
    found = paper.solve(ask("l4", False, "l4-padding", 182, 76, 32), 324, 14)
    assert found is not None
    assert found.gpu_s == pytest.approx(0.1295, abs=5e-5)
    assert found.cpu_s == pytest.approx(0.0257, abs=5e-5)


def test_the_memory_form_is_what_was_asked_for() -> None:
    """The residual of all sequences on the GPU leaves room for fewer of them, on any machine."""
    t4, padding = (paper.optimise(ask("l4", True, form, 184.29, None, 128)) for form in ("t4", "l4-padding"))
    assert t4.wg < padding.wg


def test_an_answer_fills_neither_memory_beyond_its_share() -> None:
    asked = ask("t4", False, "t4", 182, None, 128)
    found = paper.optimise(asked)
    assert sum(found.memory["gpu"].values()) <= 0.86 * asked.hardware.gpu_bytes + 4
    assert sum(found.memory["cpu"].values()) <= 0.8 * asked.cpu_bytes + 4
    assert paper.solve(asked, found.microbatch, found.microbatches + 1) is None


def test_tensor_parallel_gpus_count_but_the_link_does_not() -> None:
    one, two = (ask(m, True, "t4", 400, None, 64) for m in ("t4", "2xt4"))
    a, b = (paper.solve(c, 4, 4) for c in (one, two))
    assert b.gpu_s == pytest.approx(a.gpu_s / 2)
    assert b.link_s / (1 - b.wg) == pytest.approx(a.link_s / (1 - a.wg))
    assert b.wg > a.wg


def test_a_machine_that_the_artifact_does_not_know_gives_its_own_constants() -> None:
    h100 = machines.load("h100")
    asked = ask("h100", True, "t4", None, None, 64)
    assert asked.hardware.gpu_flops == h100.resources["gpu.flops"].capacity
    assert asked.cpu_bytes == h100.memories["cpu"].bytes


@pytest.mark.parametrize(("machine", "memory", "named"), [("t4", 80, "memory 'cpu' lacks"), ("t4", 400, "memory 'gpu' lacks")])
def test_what_does_not_fit_is_refused_with_what_is_missing(machine: str, memory: float, named: str) -> None:
    asked = ask(machine, True, "t4", memory, None, 64)
    if "gpu" in named:
        small = machines.load(machine).model_copy(update={"name": "small", "memories": {
            **machines.load(machine).memories, "gpu": Memory(bytes=4 << 30, source="a test")}})  # fmt: skip
        asked = paper.case(asked.model, small, workloads.load("mtbench"), cpu_memory_gib=memory, cpu_bandwidth=None, form="t4")
    with pytest.raises(UserError, match=named) as e:
        paper.found(asked, machines.load(machine), True)
    assert "nearest change" in str(e.value)


def test_the_named_memory_is_enough_and_a_little_less_is_not() -> None:
    with pytest.raises(UserError, match="--cpu-memory") as e:
        paper.found(ask("t4", True, "t4", 80, None, 64), machines.load("t4"), True)
    enough = float(str(e.value).rpartition(" ")[2])
    assert paper.optimise(ask("t4", True, "t4", enough, None, 64)) is not None
    assert paper.optimise(ask("t4", True, "t4", enough - 0.02, None, 64)) is None


def test_one_token_has_no_decode_step() -> None:
    with pytest.raises(UserError, match="--gen"):
        ask("t4", True, "t4", 180, None, 1)
