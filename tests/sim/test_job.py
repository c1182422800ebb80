"""What a job is checked for before it runs, and how batch sizes are chosen."""

from pathlib import Path

import pytest

from sim import machines, models, workloads
from sim.errors import UserError
from sim.job import choices, prepare
from sim.machines import Machine
from sim.schedulers.policy import Policy


def job(machine: Machine | str = "l4", model: str = "tiny-mixtral", workload: str = "mtbench", scheduler: str = "cgopipe", **sizes: int):  # type: ignore[no-untyped-def]
    found = machines.load(machine) if isinstance(machine, str) else machine
    return prepare(models.load(model), found, workloads.load(workload), scheduler, **sizes)


def with_memory(name: str, amount: int) -> Machine:
    machine = machines.load("l4")
    memories = {**machine.memories, name: machine.memories[name].model_copy(update={"bytes": amount, "usable": 1.0})}
    return machine.model_copy(update={"memories": memories})


def test_defaults_are_the_largest_batch_that_fits() -> None:
    assert (job().policy.batch, job().policy.microbatch) == (1024, 64)
    small = job(with_memory("gpu", 300 * 2**20)).policy
    assert small.batch == 256
    larger = {(b.batch, b.microbatch) for b in choices(None, None, None) if b.batch > small.batch}
    for batch, microbatch in larger:
        with pytest.raises(UserError, match="bytes are missing"):
            job(with_memory("gpu", 300 * 2**20), batch=batch, microbatch=microbatch)


def test_what_is_given_is_kept() -> None:
    assert [(p.batch, p.microbatch) for p in choices(None, 24, 8)] == [(24, 8)]
    assert [(p.batch, p.microbatch) for p in choices(None, 10, None)] == [(10, 8), (10, 4), (10, 2), (10, 1)]
    assert [p.batch for p in choices(None, None, 12)] == [192, 96, 48, 24, 12]


def test_flags_win_over_the_policy() -> None:
    policy = Policy(batch=64, microbatch=8, static_experts=2)
    (chosen,) = choices(policy, None, 16)
    assert (chosen.batch, chosen.microbatch, chosen.static_experts) == (64, 16, 2)


def test_microbatch_above_the_batch() -> None:
    with pytest.raises(UserError, match="policy: microbatch: is 64, more than the batch of 32"):
        job(batch=32, microbatch=64)


def test_a_batch_that_fits_nowhere_tells_bytes_and_knob() -> None:
    missing = r"memory 'gpu': [\d,]+ bytes are missing; .*usable [\d,]+; "
    with pytest.raises(UserError, match=f"cgopipe on l4, batch 64, microbatch 16: {missing}"):
        job(with_memory("gpu", 10**8), batch=64, microbatch=16)
    with pytest.raises(UserError, match="batch 1, microbatch 1: memory 'gpu'"):
        job(model="mixtral-8x22b", scheduler="resident")


@pytest.mark.parametrize("memory", ["cpu", "pinned"])
def test_every_memory_is_a_hard_limit(memory: str) -> None:
    with pytest.raises(UserError, match=f"memory '{memory}': .* bytes are missing"):
        job(with_memory(memory, 10**6), batch=64, microbatch=16)


def test_a_machine_without_a_needed_lane() -> None:
    machine = machines.load("l4")
    short = machine.model_copy(update={"lanes": tuple(x for x in machine.lanes if x.name != "pin")})
    with pytest.raises(UserError, match="machine l4 has no lane 'pin' that scheduler cgopipe needs; it has gpu, cpu, h2d, d2h"):
        job(short)
    assert job(short, scheduler="fastdecode").scheduler == "fastdecode"


def test_unknown_scheduler_and_negative_seed() -> None:
    with pytest.raises(UserError, match="--scheduler: unknown name 'cgpipe'; did you mean 'cgopipe'"):
        job(scheduler="cgpipe")
    with pytest.raises(UserError, match="--seed: is -1"):
        job(seed=-1)


def test_positions_are_limited_by_the_model() -> None:
    workload = workloads.load("mtbench").with_generation(4000)
    with pytest.raises(UserError, match="reach 4418 positions, tiny-mixtral has 4096; lower --gen"):
        prepare(models.load("tiny-mixtral"), machines.load("l4"), workload, "cgopipe")


def test_known_lengths_are_served_in_one_batch() -> None:
    """Algorithm 2's own cache limit would abort a few of these for a second batch of their own."""
    found = job(batch=128, microbatch=16)
    assert len(found.requests) == 128
    assert found.policy.cache_tokens == 16 * (418 + 128)


def test_mixed_draws_more_requests_than_slots() -> None:
    found = job(workload="mixed", batch=16, microbatch=4)
    assert len(found.requests) == len(found.lengths) == 32
    assert found.policy.cache_tokens is None


def test_own_scheduler_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from sim.schedulers.resident import Resident\n\n\nclass Mine(Resident):\n    pass\n")
    assert type(job(scheduler=f"{path}:Mine", batch=8, microbatch=4).fresh()).__name__ == "Mine"
