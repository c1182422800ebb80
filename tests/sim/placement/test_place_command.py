"""`python -m sim place`: every form of load, its results, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sim.cli.app import main
from traces.files import Provenance
from traces.load import Load, write_load

COUNTS = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
KEYS = {"policy", "balancedness", "balancedness_test", "gpus_touched", "regions_touched", "moved", "wall_s"}


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"logical_count": COUNTS}))
    return path


def place(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    code = main(["place", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def written(folder: Path, form: str) -> Path:
    path, values = folder / f"load.{form.removeprefix('plain.').removeprefix('long.')}", np.array(COUNTS)
    layer, expert = (a.ravel() for a in np.indices(values.shape))
    if form == "npz":
        np.savez(path, counts=values)
    elif form == "csv":
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in COUNTS))
    elif form == "long.csv":
        path.write_text("layer,expert,count\n" + "".join(f"{a},{b},{values[a, b]}\n" for a, b in zip(layer, expert, strict=True)))
    elif form == "parquet":
        write_load(path, Load(values[None], Provenance("recorded", "a test")))
    elif form == "plain.parquet":
        pq.write_table(pa.table({"layer": layer, "expert": expert, "count": values.ravel()}), path)
    return path


@pytest.mark.parametrize("form", ["npz", "csv", "long.csv", "parquet", "plain.parquet"])
def test_every_form_of_counts_gives_the_same_scores(capsys: pytest.CaptureFixture[str], tmp_path: Path, counts: Path, form: str) -> None:
    flags = ("--machine", "8xh100", "--spares", 4, "--policies", "round-robin,eplb")
    wanted, found = place(capsys, "--load", counts, *flags), place(capsys, "--load", written(tmp_path, form), *flags)
    for a, b in zip(wanted["results"], found["results"], strict=True):
        assert {k: v for k, v in a.items() if k != "wall_s"} == {k: v for k, v in b.items() if k != "wall_s"}
        assert set(a) == KEYS
    first, second = wanted["results"]
    assert first["moved"] == 0 and second["balancedness"] > first["balancedness"] and second["gpus_touched"] is None


def routing(path: Path, seed: int, tokens: int = 60) -> Path:
    rng = np.random.default_rng(seed)
    experts = np.argsort(rng.random((tokens, 2, 8)) * np.arange(1, 9), axis=2)[:, :, :2].astype(np.uint8)
    np.savez(path, experts=experts, seq_offsets=np.array([0, tokens // 2, tokens]))
    return path


def test_tokens_are_scored_on_the_test_load(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a, b = routing(tmp_path / "a.npz", 0), routing(tmp_path / "b.npz", 1)
    flags = ("--machine", "8xh100", "--gpus", 4, "--policies", "greedy,affinity,joint,robust")
    found = place(capsys, "--load", a, "--test-load", b, *flags)
    assert found["touched_on"] == "test_load" and found["gpus"] == 4
    alone = place(capsys, "--load", a, *flags)
    for tested, row in zip(found["results"], alone["results"], strict=True):
        assert tested["balancedness"] == row["balancedness"] and row["balancedness_test"] is None
        assert tested["balancedness_test"] != row["balancedness"] and 1 <= tested["gpus_touched"] <= 2
    twice = place(capsys, "--load", a, "--load", b, *flags)
    assert twice["windows"] == 2


def test_clusters_have_regions_and_unequal_gpus(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ("--machine", "five-regions", "--spares", 60, "--policies", "hierarchical,eplb")
    found = place(capsys, "--load", routing(tmp_path / "a.npz", 0), *flags)
    assert found["regions"] == 4 and len(set(found["slots"])) > 1
    local, global_ = (row["regions_touched"] for row in found["results"])
    assert 1 <= local <= global_


def test_a_placement_can_be_written_and_taken_up(capsys: pytest.CaptureFixture[str], tmp_path: Path, counts: Path) -> None:
    out = tmp_path / "now.json"
    flags = ("--machine", "8xh100", "--load", counts, "--spares", 4, "--policies", "eplb")
    assert place(capsys, *flags, "-o", out)["results"][0]["moved"] > 0
    assert place(capsys, *flags, "--current", out)["results"][0]["moved"] == 0


def test_more_gpus_than_the_machine_has_are_further_nodes(capsys: pytest.CaptureFixture[str], counts: Path) -> None:
    found = place(capsys, "--machine", "8xh100", "--gpus", 12, "--load", counts, "--policies", "eplb")
    assert found["gpus"] == 12 and found["nodes"] == 2 and found["slots"] == [1] * 12


def bad(folder: Path, name: str) -> list[str]:
    """Arguments in place of `--load counts.json`, or after it."""
    (folder / "zeros.csv").write_text("0,0\n0,0\n")
    (folder / "other.csv").write_text("1,2,3\n4,5,6\n")
    (folder / "ragged.json").write_text('{"logical_count": [[1, 2], [3]]}')
    (folder / "cut.json").write_text('{"logical_count": [[1, 2')
    (folder / "now.json").write_text('{"gpus": 2, "experts": 2, "layers": [[[0], [1, 7]]]}')
    return [str(folder / part) if "." in part else part for part in name.split()]


@pytest.mark.parametrize(("arguments", "message"), [
    ("--load zeros.csv", "holds no counts but zeros"), ("--load ragged.json", "rows of different lengths"),
    ("--load cut.json", "not readable as JSON"), ("--load none.json", "no such file"), ("--load text.txt", "no such file"),
    ("--load counts.json --test-load other.csv", "--test-load: has 2 layers of 3 experts; --load has 2 of 12"),
    ("--load counts.json --load other.csv", "other.csv has 2 layers of 3 experts; the other files have 2 of 12"),
    ("--load counts.json --policies eplp", "did you mean 'eplb'"), ("--load counts.json --policies ,", "--policies: names none; have"),
    ("--load counts.json --spares 99", "--spares: is 99; 8 GPUs hold"),
    ("--load counts.json --groups 5", "--groups: is 5; must divide the 12 experts"),
    ("--load counts.json --current now.json --gpus 2", "must be different experts 0 to 1"),
    ("--load counts.json --machine 9xh100", "unknown name '9xh100'"), ("--load counts.json --gpus 99 --machine five-regions", "has 30"),
    ("--load counts.json --policies eplb,greedy -o out.json", "-o: writes one placement"),
])  # fmt: skip
def test_bad_input_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, counts: Path, arguments: str, message: str
) -> None:
    given = bad(tmp_path, arguments)
    machine = [] if "--machine" in given else ["--machine", "8xh100"]
    given = [str(counts) if a.endswith("counts.json") else a for a in given]
    assert main(["place", *machine, *given]) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert message in last and not out and "Traceback" not in err


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str], counts: Path) -> None:
    assert main(["place", "--machine", "8xh100", "--spares", "4", "--load", str(counts)]) == 0
    out = capsys.readouterr().out
    assert "2 layers of 12 experts on 8 GPUs of 8xh100, 2 slots a layer each" in out
    assert all(name in out for name in ("round-robin", "greedy", "eplb", "robust"))


def whole_model(path: Path) -> Path:
    """Counts of gpt-oss-20b's 24 layers of 32 experts."""
    np.savez(path, counts=np.random.default_rng(0).integers(1, 99, (24, 32)))
    return path


def test_slots_follow_from_what_experts_weigh(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from sim import clusters, models
    from sim.placement.fleet import KV_SHARE, USABLE

    flags = ("--machine", "home-swarm", "--model", "gpt-oss-20b", "--policies", "eplb", "--load", whole_model(tmp_path / "a.npz"))
    found, model = place(capsys, *flags), models.load("gpt-oss-20b")
    for slots, copies, gpu in zip(found["slots"], found["memory"], clusters.load("home-swarm").gpu, strict=True):
        room = gpu.spec.memory_bytes * USABLE * (1 - KV_SHARE) - model.dense_bytes
        assert 24 * slots <= copies and copies * model.expert_bytes <= max(0, room) < (copies + 1) * model.expert_bytes
        assert slots == min(32, copies // 24)
    assert len(set(found["slots"])) > 1
    dealt = place(capsys, *flags, "--spares", 4)["slots"]
    assert sum(dealt) == 36 and all(a <= b for a, b in zip(dealt, found["slots"], strict=True))


def test_a_model_that_does_not_fit_is_refused_with_the_sizes(capsys: pytest.CaptureFixture[str], tmp_path: Path, counts: Path) -> None:
    flags = ["place", "--machine", "t4", "--model", "gpt-oss-20b", "--policies", "eplb", "--load"]
    assert main([*flags, str(whole_model(tmp_path / "a.npz"))]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert "does not fit on 1 GPUs of t4: 32 copies a layer x 24 layers x 13." in err and "GB usable" in err
    assert main([*flags, str(counts)]) == 2
    assert "--model: gpt-oss-20b has 24 layers of 32 experts; --load has 2 of 12" in capsys.readouterr().err


def test_the_page_shows_load_before_and_after(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    flags = ("--machine", "8xh100", "--gpus", 4, "--policies", "greedy,eplb", "--load", routing(tmp_path / "a.npz", 0), "--html", out)
    found = place(capsys, *flags)
    page = out.read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [p["name"] for p in data["placements"]] == ["Now", "greedy", "eplb"]
    for shown, row in zip(data["placements"][1:], found["results"], strict=True):
        assert shown["balancedness"] == row["balancedness"] and shown["touched"] == pytest.approx(row["gpus_touched"], abs=1e-3)
        assert sorted(e for gpu in shown["experts"][0] for e in gpu) == list(range(8))
    assert "href=\"http" not in page and "src=\"http" not in page
