"""search: what it returns, refines, refuses and keeps."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from sim import machines, models, workloads
from sim.errors import UserError
from sim.job import prepare
from sim.machines.schema import Machine, Price
from sim.policy import Found, Space, search, stored
from sim.policy.space import Order, default, grid, orders
from sim.schedulers import registry
from sim.simulate import simulate
from sim.workloads.lengths import Fixed
from sim.workloads.schema import Workload

SHORT = workloads.load("mtbench").with_generation(8)
SMALL = replace(models.load("tiny-mixtral"), layers=3)


def shrunk(machine: Machine, **bytes_: int) -> Machine:
    changed = {n: m.model_copy(update={"bytes": bytes_[n], "usable": 1.0}) if n in bytes_ else m for n, m in machine.memories.items()}
    return machine.model_copy(update={"memories": changed})


BOX = shrunk(machines.load("t4"), gpu=250 << 20, cpu=500 << 20, pinned=200 << 20)


def small_space(machine: Machine) -> Space:
    return Space(orders(machine), grid(24), tuple(range(1, 13)), tuple(range(9)), (1, 2), most=128)


@pytest.fixture(scope="module")
def found() -> Found:
    return search(SMALL, BOX, SHORT, refine=12, space=small_space(BOX))


def test_the_prediction_is_the_simulation_of_the_policy(found: Found) -> None:
    outcome = simulate(SMALL, BOX, SHORT, found.policy.scheduler, found.policy)
    assert outcome.summary["tokens_per_s"] == pytest.approx(found.predicted_tokens_per_s, rel=1e-12)
    assert {home: dict(consumers) for home, consumers in outcome.job.peak_bytes.items()} == found.memory


def test_refinement_does_not_lose_to_the_best_bound(found: Found) -> None:
    unrefined = search(SMALL, BOX, SHORT, refine=0, space=small_space(BOX))
    simulated = simulate(SMALL, BOX, SHORT, unrefined.policy.scheduler, unrefined.policy).summary["tokens_per_s"]
    assert found.predicted_tokens_per_s >= simulated
    assert unrefined.predicted_tokens_per_s == pytest.approx(unrefined.searched["best_bound_tokens_per_s"])
    assert len(found.searched["simulated"]) <= 12
    assert found.predicted_tokens_per_s == max(s["tokens_per_s"] for s in found.searched["simulated"])


def test_no_scheduler_that_follows_the_policy_beats_its_bound(found: Found) -> None:
    reached = {}
    for name in registry.names():
        try:
            reached[name] = simulate(SMALL, BOX, SHORT, name, found.policy).summary["tokens_per_s"]
        except UserError:
            continue  # attends elsewhere, or does not fit
    assert found.policy.scheduler in reached and len(reached) > 1
    assert max(reached.values()) <= found.hrm_bound_tokens_per_s


def test_latency_wants_the_shortest_batch() -> None:
    quick = search(SMALL, BOX, SHORT, "latency", refine=4, space=small_space(BOX))
    assert quick.policy.batch == 1
    assert quick.objective == "latency"


def test_a_schedule_that_reacts_is_refined_too() -> None:
    mixed = workloads.load("mixed").with_generation(8)
    answer = search(SMALL, BOX, mixed, refine=3, space=small_space(BOX))
    assert len(answer.searched["simulated"]) >= 1
    prepare(SMALL, BOX, mixed, answer.policy.scheduler, answer.policy)


def test_cost_is_dollars_for_a_million_tokens() -> None:
    priced = BOX.model_copy(update={"price": Price(usd_per_hour=3.6, source="a test")})
    answer = search(SMALL, priced, SHORT, "cost", refine=0, space=small_space(BOX))
    assert answer.usd_per_million_tokens == pytest.approx(1000 / answer.predicted_tokens_per_s)
    with pytest.raises(UserError, match="price: {usd_per_hour"):
        search(SMALL, BOX, SHORT, "cost", refine=0, space=small_space(BOX))


def test_the_machine_s_lanes_decide_which_schedulers_are_tried() -> None:
    bare = BOX.model_copy(update={
        "lanes": tuple(lane for lane in BOX.lanes if lane.name in ("gpu", "h2d")),
        "ops": tuple(op for op in BOX.ops if op.lane in ("gpu", "h2d")),
    })  # fmt: skip
    assert {o.scheduler for o in orders(bare)} == {"deepspeed", "resident"}
    assert {o.scheduler for o in default(SMALL, BOX).orders} == set(registry.names()) - {"ticket"}


def test_the_grid_of_micro_batches_has_no_large_steps() -> None:
    sizes = grid(2048)
    assert sizes[:16] == tuple(range(1, 17)) and sizes[-1] == 2048
    assert max(b / a for a, b in zip(sizes[8:], sizes[9:], strict=False)) < 1.13


# What does not fit --------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{"gpu": 60 << 20}, {"cpu": 60 << 20}, {"gpu": 150 << 20, "cpu": 20 << 20}], ids=str)
def test_the_message_names_bytes_that_are_really_missing(sizes: dict[str, int]) -> None:
    """With what it names a policy is found, with one byte less none."""
    box = shrunk(BOX, **sizes)
    with pytest.raises(UserError, match="lacks [0-9,]+ bytes") as e:
        search(SMALL, box, SHORT, refine=0, space=small_space(box))
    named = {n: int(b.replace(",", "")) for n, b in re.findall(r"memories.(\w+).bytes of ([0-9,]+)", str(e.value))}
    enough = shrunk(box, **named)
    assert search(SMALL, enough, SHORT, refine=0, space=small_space(box)).policy.batch <= 2
    for name, needed in named.items():
        with pytest.raises(UserError, match=f"memory '{name}' lacks 1 bytes"):
            search(SMALL, shrunk(enough, **{name: needed - 1}), SHORT, refine=0, space=small_space(box))


def test_a_shorter_generation_that_fits_is_named() -> None:
    long = Workload(name="long", source="a test", prompt=Fixed(tokens=8), generation=Fixed(tokens=3000))
    box = shrunk(BOX, cpu=1, pinned=1, gpu=SMALL.weight_bytes + (12 << 20))
    with pytest.raises(UserError, match="nearest change: --gen ") as e:
        search(SMALL, box, long, refine=0)
    gen = int(str(e.value).partition("--gen ")[2].split()[0])
    assert search(SMALL, box, long.with_generation(gen), refine=0).policy.batch == 1
    with pytest.raises(UserError):
        search(SMALL, box, long.with_generation(gen + 1), refine=0)


def test_sequences_beyond_the_model_s_positions_are_refused_as_such() -> None:
    with pytest.raises(UserError, match="positions"):
        search(SMALL, BOX, SHORT.with_generation(10_000))


def test_a_machine_without_a_gpu_lane_is_refused() -> None:
    bare = BOX.model_copy(update={"lanes": tuple(lane for lane in BOX.lanes if lane.name == "h2d"), "ops": ()})
    with pytest.raises(UserError, match="'gpu' at least"):
        search(SMALL, bare, SHORT)


# Kept answers -------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv(stored.DIRECTORY, str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


def never() -> Found:
    raise AssertionError("computed again")


def test_an_answer_is_computed_once(kept, found: Found) -> None:
    found = replace(found, wall_s=1e9)
    first, remark = stored.answer("a", lambda: found)
    assert (first, remark) == (found, "")
    again, remark = stored.answer("a", never)
    assert replace(again, wall_s=found.wall_s) == found
    assert "--no-cache" in remark
    assert again.wall_s < found.wall_s  # what reading it took, not what the search took


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b'{"policy": {"batch": 0}}', b"\xff\xfe"])
def test_a_broken_entry_is_computed_again(kept, found: Found, rubbish: bytes) -> None:
    stored.answer("a", lambda: found)
    (entry,) = kept.iterdir()
    entry.write_bytes(rubbish)
    assert stored.answer("a", lambda: found)[0] is found
    assert stored.answer("a", never)[0].policy == found.policy


def test_an_answer_that_cannot_be_kept_is_given_anyway(tmp_path, monkeypatch, found: Found) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(stored.DIRECTORY, str(tmp_path / "file" / "cache"))
    answer, remark = stored.answer("a", lambda: found)
    assert answer is found
    assert "could not be kept" in remark


def test_the_key_tells_everything_apart() -> None:
    arguments = {"refine": 8, "seed": 0}
    keys = {
        stored.key(SMALL, BOX, SHORT, arguments),
        stored.key(replace(SMALL, top_k=1), BOX, SHORT, arguments),
        stored.key(SMALL, shrunk(BOX, gpu=1 << 30), SHORT, arguments),
        stored.key(SMALL, BOX, SHORT.with_padding(), arguments),
        stored.key(SMALL, BOX, SHORT, {**arguments, "refine": 9}),
    }
    assert len(keys) == 5


def test_the_object_of_json_has_the_promised_keys(found: Found) -> None:
    shown = json.loads(json.dumps(found.as_dict()))
    promised = {"policy", "predicted_tokens_per_s", "hrm_bound_tokens_per_s", "memory", "binding_constraint", "searched", "wall_s"}
    assert promised <= set(shown)
    assert shown["policy"]["scheduler"] in registry.names()
    assert Order(shown["policy"]["scheduler"], shown["policy"]["attention"]) in orders(BOX)
