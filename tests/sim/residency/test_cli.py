"""`python -m sim cache`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.cli.app import main
from traces.files import Provenance
from traces.routing import Routing, Shape, write_routing

LAYERS, EXPERTS, K, TOKENS, REQUESTS = 4, 8, 2, 12, 3


def write(path: Path, seed: int = 0, tokens: int = TOKENS, decode: bool = True) -> Path:
    """A trace of tiny-mixtral's shape."""
    rng = np.random.default_rng(seed)
    n = REQUESTS * tokens * LAYERS
    request, token, layer = (a.ravel() for a in np.meshgrid(range(REQUESTS), range(tokens), range(LAYERS), indexing="ij"))
    experts = np.array([rng.permutation(EXPERTS)[:K] for _ in range(n)], np.int16)
    write_routing(path, Routing(
        np.full(n, decode), (token + 1 if decode else token * 0).astype(np.int32), request.astype(np.int32),
        (5 * decode + token).astype(np.int32), layer.astype(np.int16), experts, np.full((n, K), np.nan, np.float32),
        Shape("tiny-mixtral", LAYERS, EXPERTS, K), Provenance("synthetic", "drawn for a test"),
    ))  # fmt: skip
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "routing.parquet")


def run(trace: Path, *flags: str) -> int:
    return main(["cache", "--model", "tiny-mixtral", "--trace", str(trace), *flags])


def found(capsys: pytest.CaptureFixture[str], trace: Path, *flags: str) -> dict[str, Any]:
    assert run(trace, *flags, "--json") == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_every_combination_is_a_row_with_belady_beside_it(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    flags = ("--machine", "l4", "--capacity", "2,4", "--evict", "lru,lfru", "--prefetch", "none,markov", "--work", "gpu,hybrid")
    answer = found(capsys, trace, *flags)
    rows = answer["rows"]
    assert len({(r["capacity"], r["evict"], r["prefetch"], r["work"]) for r in rows}) == len(rows) == 16
    assert answer["tokens"] == REQUESTS * TOKENS and answer["staging_slots"] == 2 * K
    for r in rows:
        assert r["tokens_per_s"] > 0 and 0 < r["hit_rate"] < 1 and r["bytes_per_token"] > 0
        assert r["working_set_over_capacity"] == K / r["capacity"]
        assert (r["prefetch_useful"] is None) == (r["prefetch"] == "none")
        if r["prefetch"] == "none" and r["work"] == "gpu":
            assert r["hit_rate"] <= r["belady_hit_rate"] and r["bytes_per_token"] >= r["belady_bytes_per_token"]


def test_without_a_machine_hit_rates_are_those_of_the_timeline(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    flags = ("--capacity", "3", "--evict", "lru,sieve,static,belady", "--batch", "2")
    timeless, timed = found(capsys, trace, *flags), found(capsys, trace, *flags, "--machine", "l4")
    same = ("capacity", "evict", "admit", "hit_rate", "bytes_per_token", "belady_hit_rate")
    assert [[r[name] for name in same] for r in timeless["rows"]] == [[r[name] for name in same] for r in timed["rows"]]
    assert all(r["tokens_per_s"] is None for r in timeless["rows"])


def test_the_table_and_what_was_left_out(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    assert run(trace, "--machine", "l4", "--capacity", "2", "--evict", "lru", "--steps", "10", "--skip", "1") == 0
    told = capsys.readouterr()
    assert "10 tokens of 2 sequences" in told.out and "Belady" in told.out
    assert f"first 10 decode steps of the trace's {2 * TOKENS}" in told.err


@pytest.mark.parametrize("machine", [(), ("--machine", "l4", "--prefetch", "none,markov", "--work", "gpu,hybrid")])
def test_a_picture(trace: Path, tmp_path: Path, machine: tuple[str, ...]) -> None:
    path = tmp_path / "cache.svg"
    assert run(trace, "--capacity", "2,4", "--evict", "lru", "--plot", str(path), *machine) == 0
    drawn = path.read_text()
    assert drawn.count("<path") > 20 and ("worth" in drawn) == bool(machine) or "<text" not in drawn


def test_next_gate_needs_a_trace_of_it(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    flags = ("--machine", "l4", "--capacity", "2", "--evict", "lru", "--prefetch", "next-gate", "--no-governor")
    assert run(trace, *flags) == 2
    assert "give a trace of it with --next-gate" in capsys.readouterr().err
    exact = found(capsys, trace, *flags, "--next-gate", str(trace))["rows"][0]  # a gate that is always right
    random = found(capsys, trace, *flags, "--next-gate", str(write(tmp_path / "other.parquet", seed=1)))["rows"][0]
    assert exact["prefetch_useful"] > 0.95 and random["prefetch_useful"] < 0.6
    assert exact["tokens_per_s"] > random["tokens_per_s"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--capacity", "9"], "--capacity: is '9'; whole numbers from 1 to 8"),
        (["--capacity", ","], "--capacity: is empty"),
        (["--capacity", "2", "--evict", "lfu,lru2"], "--evict: unknown"),
        (["--capacity", "2", "--work", "hybrid"], "need a timeline; give --machine"),
        (["--capacity", "2", "--skip", "3"], "--skip: is 3;"),
        (["--capacity", "2", "--machine", "l4", "--host", "8"], "--host: is 8; more than one layer's 8"),
        (["--capacity", "2", "--machine", "l4", "--host", "16"], "no lane 'nvme'"),
        (["--capacity", "2", "--model", "olmoe"], "metadata k: is 2; a trace of olmoe has 8"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], trace: Path, flags: list[str], words: str) -> None:
    assert run(trace, *flags) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert words in err[-1], err


@pytest.mark.parametrize("flags", [["--capacity", "9"], ["--capacity", "2", "--evict", "lru2"], ["--capacity", "2", "--prefetch", "luck"]])
def test_bad_names_are_told_before_the_trace_is_read(
    capsys: pytest.CaptureFixture[str], trace: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.residency.feed.load", None)
    assert run(trace, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {flags[-2]}: ")


def test_a_trace_without_decode_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(write(tmp_path / "prompts.parquet", tokens=1, decode=False), "--capacity", "2") == 2
    assert "holds no decode steps" in capsys.readouterr().err


AUTO = ("--machine", "rtx4060", "--auto", "--evict", "lru,lfru", "--admit", "always", "--prefetch", "none,affinity", "--steps", "16")


def test_a_choice_is_the_fastest_of_what_it_names(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    """Everything of tiny-mixtral fits: all experts stay, and no row that `cache` prints is faster."""
    answer = found(capsys, trace, *AUTO)
    best, sizes = answer["best"], answer["sizes"]
    assert (answer["replayed"], answer["tried"]) == (2 * 2, 1 * 2 * 3)  # policies x scopes; tables x prefetchers x works
    assert [t["capacity"] for t in sizes] == [2, 4, 6, 7, 8] and answer["room"]["fits"] == EXPERTS
    assert best["tokens_per_s"] == max(t["tokens_per_s"] for t in sizes) == max(t["tokens_per_s"] for t in answer["rivals"].values())
    assert sizes[0]["tokens_per_s"] < sizes[-1]["tokens_per_s"] and set(answer["rivals"]) == {"gpu", "cpu-expert", "hybrid"}
    assert list(answer["twice_as_fast"].values()) == sorted(answer["twice_as_fast"].values(), reverse=True)
    assert answer["twice_as_fast"]["gpu.memory"] > best["tokens_per_s"]
    assert len(answer["explanation"]) == 5 and f"keep {best['capacity']}" in answer["explanation"][1]


def test_a_choice_in_words(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    assert run(trace, *AUTO, "--work", "gpu") == 0
    told = capsys.readouterr().out
    assert "8 of 8 experts in each of 4 layers" in told and "Which N" in told and "Limit: " in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--auto"], "--auto: chooses for a machine"), ([], "--capacity: missing"),
        (["--auto", "--machine", "l4", "--capacity", "2"], "--capacity: does not go with --auto"),
        (["--auto", "--machine", "l4", "--evict", "belady"], "--evict"),
    ],
)  # fmt: skip
def test_what_a_choice_refuses(capsys: pytest.CaptureFixture[str], trace: Path, flags: list[str], message: str) -> None:
    assert run(trace, *flags) == 2
    assert message in capsys.readouterr().err


def test_rates_have_no_exponent() -> None:
    from sim.residency.advice import rate

    assert [rate(v) for v in (0.01234, 12.34, 999.4, 999.6, 1085.2)] == ["0.0123", "12.3", "999", "1000", "1085"]
