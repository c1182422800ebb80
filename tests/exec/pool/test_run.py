"""Whole decodes with experts from disk: the bits are those of a resident run, whatever is evicted, fetched ahead or too small."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from exec import session
from exec.calibration.links import relink
from exec.cli import app
from exec.pool import run as pool
from exec.pool.manifest import NAME
from exec.pool.pool import Store
from exec.runtime import TaskFailed
from exec.weights import random_weights
from sim.drive import replay
from sim.errors import UserError
from sim.events import Request
from sim.machines.schema import Machine
from sim.residency import feed
from sim.schedulers import registry
from sim.schedulers.expert_cache import ExpertCache
from sim.schedulers.policy import Policy
from tests.exec import profiles, tiny
from tests.exec.pool import checkpoints
from tests.exec.pool.checkpoints import SPEC
from traces.routing import RoutingIndex

FILE = "model.safetensors"
SLOT = pool.slot_bytes(SPEC)
ALL = SPEC.layers * SPEC.experts
PROMPTS, GEN = (9, 7, 4), 8
LONGEST = max(PROMPTS) + GEN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint")
    checkpoints.small(made)
    return made


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with Store(folder, SPEC) as opened:
        yield opened


@cache
def machine() -> Machine:
    return relink(profiles.machine(), {"h2d": 0, "d2h": 0, "nvme": 0})


def requests(lengths: tuple[int, ...] = PROMPTS) -> tuple[Request, ...]:
    return tuple(Request(i, n, GEN, GEN) for i, n in enumerate(lengths))


def prompts(lengths: tuple[int, ...] = PROMPTS) -> list[list[int]]:
    return [p.tolist() for p in tiny.prompts(lengths, SPEC.vocab)]


def job(ram: int = ALL, device: int = 10, batch: int = 3, **names: object) -> pool.CacheJob:
    """Budgets in experts."""
    caching = pool.caching_for(SPEC, ram * SLOT, device * SLOT, **names)
    return pool.CacheJob(SPEC, machine(), caching, batch, requests(), (GEN,) * len(PROMPTS))


@cache
def resident() -> session.Outcome:
    together = Policy(batch=3, microbatch=3, cache_tokens=3 * LONGEST)
    scheduler = registry.load("resident")(SPEC, together)
    return session.run(
        SPEC, random_weights(SPEC, 3), machine(), scheduler, requests(), prompts(), lengths=[GEN] * 3, keep_logits=True, record_routing=True
    )


def assert_bits(ran: pool.Ran) -> None:
    wanted = resident()
    assert ran.outcome.tokens == wanted.tokens
    for r, logits in wanted.logits.items():
        assert (ran.outcome.logits[r] == logits).all(), f"request {r}"


@pytest.mark.parametrize("evict", ["lru", "lfu", "lfru", "sieve", "affinity", "static", "belady"])
@pytest.mark.parametrize("ram, device", [(ALL, 6), (9, 3), (11, 20)])
def test_bits_of_every_policy_and_budget(store: Store, evict: str, ram: int, device: int) -> None:
    assert resident().routing is not None
    before = feed.of(resident().routing) if evict in ("static", "belady") else None
    ran = pool.run(job(ram, device, evict=evict), store, prompts(), keep_logits=True, poison=True, before=before)
    assert_bits(ran)
    assert 0 < ran.served.hits < ran.served.asked or device > ALL


@pytest.mark.parametrize("prefetch", ["affinity", "markov", "next-gate", "sequence"])
@pytest.mark.parametrize("ram", [ALL, 12])
def test_bits_of_every_prefetcher(store: Store, prefetch: str, ram: int) -> None:
    ran = pool.run(job(ram, 9, prefetch=prefetch, governed=False), store, prompts(), keep_logits=True, poison=True)
    assert_bits(ran)


@pytest.mark.parametrize("work", ["cpu-expert", "hybrid"])
@pytest.mark.parametrize("ram", [ALL, 12])
def test_experts_on_the_cpu_are_right_to_rounding(store: Store, work: str, ram: int) -> None:
    ran = pool.run(job(ram, 6, work=work), store, prompts(), keep_logits=True, poison=True)
    assert ran.outcome.tokens == resident().tokens
    for r, logits in resident().logits.items():
        assert np.abs(ran.outcome.logits[r] - logits).max() < 1e-4 * np.abs(logits).max()
    if work == "cpu-expert":
        assert ran.served.on_cpu > 0


def test_more_requests_than_fit_at_once(store: Store) -> None:
    ran = pool.run(job(10, 5, batch=1), store, prompts(), keep_logits=True)
    assert ran.outcome.tokens == resident().tokens and ran.served.tokens == 3 * (GEN - 1)


def test_the_twin_does_the_same_and_the_log_replays(store: Store) -> None:
    ran = pool.run(job(10, 6, evict="lfu"), store, prompts())
    twin = pool.twin(ran)
    assert twin.served == ran.served and twin.tokens_per_s > 0
    replay(ran.log, ExpertCache(SPEC, Policy(batch=3, microbatch=3), ran.job.caching))


def test_a_recorded_routing_is_forced(store: Store) -> None:
    first = pool.run(job(10, 6), store, prompts())
    assert first.outcome.routing is not None
    swapped = first.outcome.routing
    swapped = type(swapped)(**{**{f: getattr(swapped, f) for f in swapped.__slots__}, "experts": swapped.experts[:, ::-1].copy()})
    second = pool.run(job(10, 6), store, prompts(), replay_routing=RoutingIndex(swapped))
    assert second.outcome.routing is not None
    assert (second.outcome.routing.experts == swapped.experts).all()


def test_budgets_hold(store: Store) -> None:
    made = job(9, 5)
    ran = pool.run(made, store, prompts())
    assert ran.outcome.peak_bytes["gpu"] <= machine().memories["gpu"].budget_bytes
    assert made.needed()["gpu"]["expert_slots"] <= 5 * SLOT and made.needed()["cpu"]["expert_slots"] <= 9 * SLOT


@pytest.mark.parametrize("ram, device, message", [
    (1, 10, "--ram-budget .*: holds 1 experts of .*; the top 2 of one layer need"),
    (8, 10, "--ram-budget .*: holds 8 experts; the 8 of one layer and one more are needed"),
    (16, 1, "--device-budget .*: holds 1 experts of .*; the top 2 of one layer need"),
    (16, 2, "--device-budget .*: holds 2 experts; one of each of 2 layers and one more are needed"),
])  # fmt: skip
def test_budgets_that_are_too_small(ram: int, device: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        job(ram, device)


# What breaks during a run -------------------------------------------------------------------------------


W2 = [f"model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight" for i in range(SPEC.layers) for e in range(SPEC.experts)]


def _flip(folder: Path) -> None:
    for tensor in W2:
        checkpoints.flip(folder, tensor)


def _replace(folder: Path) -> None:
    shutil.copy(folder / FILE, folder / "other")
    (folder / "other").rename(folder / FILE)


@pytest.mark.parametrize("breaks, message", [
    (_flip, r"model\.safetensors: tensor model\.layers\.\d.*\.w2\.weight: bytes .* are not those of its checksum"),
    (lambda folder: os.truncate(folder / FILE, 60_000), r"model\.safetensors: was truncated during the run"),
    (lambda folder: (folder / FILE).unlink(), r"model\.safetensors: was deleted or became unreadable during the run"),
    (_replace, r"model\.safetensors: was replaced by another file during the run"),
])  # fmt: skip
def test_a_file_that_breaks_ends_the_run_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[Path], object], message: str
) -> None:
    checkpoints.small(tmp_path)
    reads = 0
    really = Store.fill

    def fill(self: Store, *args: object, **options: object) -> None:
        nonlocal reads
        reads += 1
        if reads == SPEC.layers * SPEC.experts + 4:  # after the prompts, a few reads into the decode
            breaks(tmp_path)
        really(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "fill", fill)
    with Store(tmp_path, SPEC) as store, pytest.raises(TaskFailed, match=message):
        pool.run(job(9, 3), store, prompts())


# The command --------------------------------------------------------------------------------------------


def run_cli(*more: str, model: Path) -> int:
    return app.main(["run", "--model", str(model), "--workload", "mtbench", "--gen", "6", "--batch", "2", *more])


def test_the_command_shows_both_clocks(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = str(profiles.write(tmp_path, machine()))
    budgets = ("--ram-budget", f"{10 * SLOT}", "--device-budget", f"{6 * SLOT / 1000}kB")
    trace = tmp_path / "routing.parquet"
    assert run_cli("--machine", profile, *budgets, "--evict", "lru", "--record-routing", str(trace), "--json", model=folder) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["generated_tokens"] == 10 and found["evict"] == "lru" and 0 <= found["hit_rate"] <= 1
    assert found["simulated"]["hit_rate"] == found["hit_rate"] and found["simulated"]["tokens_per_s"] > 0
    assert run_cli("--machine", profile, *budgets, "--evict", "belady", "--trace", str(trace), model=folder) == 0
    assert "evict belady" in capsys.readouterr().out
    assert run_cli("--machine", profile, *budgets, "--auto", "--trace", str(trace), "--json", model=folder) == 0
    found = json.loads(capsys.readouterr().out)
    best = found["choice"]["best"]
    assert {key: found[key] for key in ("evict", "admit", "prefetch", "work", "capacity")} == {key: best[key] for key in (
        "evict", "admit", "prefetch", "work", "capacity")}  # what was chosen is what was run
    assert found["choice"]["tried"] > 1 and found["simulated"]["tokens_per_s"] > 0


@pytest.mark.parametrize("flags, message", [
    (("--ram-budget", "1MB"), "--ram-budget and --device-budget: both are needed"),
    (("--ram-budget", "1MB", "--device-budget", "1MB", "--scheduler", "cgopipe"), "--scheduler: does not go with --ram-budget"),
    (("--ram-budget", "much", "--device-budget", "1MB"), "--ram-budget: is 'much'"),
    (("--ram-budget", "1MB", "--device-budget", "1MB", "--evict", "mru"), "--evict: unknown name 'mru'"),
    (("--ram-budget", "1MB", "--device-budget", "1MB", "--evict", "belady"), "--evict belady: needs to know the run beforehand"),
    (("--ram-budget", "1MB", "--device-budget", "1MB", "--work", "hybrid"), "--work hybrid: compares estimates; give --machine"),
    (("--ram-budget", "1MB", "--device-budget", "1MB", "--auto"), "--auto: simulates a recording on this computer's profile"),
])  # fmt: skip
def test_flags_that_are_wrong(folder: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(*flags, model=folder) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_model_without_files_or_manifest(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / NAME).unlink()
    budgets = ("--ram-budget", "1GB", "--device-budget", "1GB")
    assert run_cli(*budgets, model=bare) == 2
    assert f"{NAME}: no such file" in capsys.readouterr().err
    assert run_cli(*budgets, model=Path("tiny-mixtral")) == 2
    assert "--model tiny-mixtral: is no directory" in capsys.readouterr().err
