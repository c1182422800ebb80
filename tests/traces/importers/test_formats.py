"""Each format on a small source: what it means, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.traces import sources
from tests.traces.sources import SAMPLES, TORCH_SAMPLES, choices
from traces.errors import TraceError
from traces.importers import FORMATS, Options, import_trace, read
from traces.load import read_load
from traces.requests import read_requests
from traces.routing_file import read_routing


def place(folder: Path, name: str) -> Path:
    sample = next(s for s in SAMPLES + TORCH_SAMPLES if s.name == name)
    path = folder / name
    path.write_bytes(sample.make())
    return path


def imported(folder: Path, name: str, **options):
    sample = next(s for s in SAMPLES + TORCH_SAMPLES if s.name == name)
    made = import_trace(sample.format, place(folder, name), folder / "out.parquet", Options(**{**sample.options, **options}))
    return {"routing": read_routing, "requests": read_requests, "load": read_load}[made.kind](folder / "out.parquet")


def test_there_is_a_sample_of_every_format():
    assert {s.format for s in SAMPLES + TORCH_SAMPLES} == set(FORMATS)


@pytest.mark.parametrize("sample", SAMPLES + TORCH_SAMPLES, ids=lambda s: s.name)
def test_a_second_import_gives_the_same_bytes(tmp_path, sample):
    path = place(tmp_path, sample.name)
    options = Options(**sample.options)
    for name in ("a", "b"):
        import_trace(sample.format, path, tmp_path / f"{name}.parquet", options)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_azure_2024_states_its_zone(tmp_path):
    found = imported(tmp_path, "azure24.csv")
    assert found.arrival_ns.tolist() == [i * 1_000_001_000 for i in range(9)]
    assert found.prompt_tokens.tolist() == [2162 + i for i in range(9)]


def test_a_gzipped_source_is_unpacked(tmp_path):
    path = tmp_path / "azure.csv.gz"
    path.write_bytes(gzip.compress(sources.azure()))
    assert len(read("azure", path)) == 20
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TraceError, match="azure.csv.gz: not a readable gzip file"):
        read("azure", path)


def test_burstgpt_decimals_are_exact_and_failures_are_left_out_on_request_only(tmp_path):
    found = imported(tmp_path, "burst.csv")
    assert found.arrival_ns[1] == 5_100_000_000 and found.arrival_ns[13] == 65_130_000_000
    path = tmp_path / "burst.csv"
    path.write_text(path.read_text().replace("102,22,124", "102,0,102"))
    with pytest.raises(TraceError, match="line 4, column Response tokens: has 0, a failed request; --drop-failed"):
        read("burstgpt", path)
    kept = read("burstgpt", path, Options(drop_failed=True, rows=20))
    assert len(kept) == 19 and kept.provenance.facts["failed_left_out"] == "1"


def test_a_total_that_is_no_sum_is_refused(tmp_path):
    path = place(tmp_path, "vidur.csv")
    path.write_text(path.read_text().replace("103,23,126", "103,2,126"))
    with pytest.raises(TraceError, match="line 5, column num_total_tokens: has 126, the parts sum to 105"):
        read("vidur", path)


def test_arrivals_out_of_order_are_refused_unless_sorted(tmp_path):
    path = place(tmp_path, "mooncake.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[7], *lines[3:7], *lines[8:]]))
    with pytest.raises(TraceError, match="mooncake.jsonl: line 5: arrives before the line above it; --sort"):
        read("mooncake", path)
    found = read("mooncake", path, Options(sort=True))
    assert found.prompt_tokens.tolist() == [600 + i for i in range(20)] and found.prefix_hashes[7] == (0, 8)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("azure.csv", "105,15", "105", "line 7: has 2 fields instead of 3"),
        ("azure.csv", "ContextTokens", "Context", "column ContextTokens: missing; has TIMESTAMP, Context"),
        ("azure.csv", "105,15", "105,-15", "line 7, column GeneratedTokens: has '-15'; must be a whole number"),
        ("azure.csv", "18:17:08", "18:77:08", "column TIMESTAMP.*must be a UTC time"),
        ("azure24.csv", "03.009903+00:00", "03.009903+02:00", "line 5, column TIMESTAMP: has .*\\+02:00.*must be a UTC time"),
        ("burst.csv", "15.3,", "-15.3,", "line 5, column Timestamp: has '-15.3'; must be a time in seconds"),
        ("mooncake.jsonl", '"timestamp": 60', '"timestamp": NaN', "line 3: not readable as JSON.*NaN is no JSON number"),
        ("mooncake.jsonl", '"timestamp": 60', '"timestamp": -60', "line 3: field timestamp: has '-60'"),
        ("mooncake.jsonl", '"input_length": 603', '"input_length": true', "line 4: field input_length: has 'True'"),
        ("mooncake.jsonl", '"output_length": 8', '"output": 8', "line 4: field output_length: missing; has timestamp"),
        ("mooncake.jsonl", "[0, 4]", '[0, "4"]', "line 4: field hash_ids: holds .* values; must be whole numbers"),
        ("tokens.jsonl", "[0.75, 0.25]", "[0.75, -0.25]", "line 1: field gate_weights: must be finite numbers of 0 or more"),
        ("tokens.jsonl", "[0.75, 0.25]", "[0.75]", "line 1: field gate_weights: .*one for each expert"),
        ("batches.jsonl", "[0, 1, 2, 3]", "[0, 1, 2]", "line 1: field topk_experts: has 4 rows, origin_rows has 3"),
        ("requests.json", '_ids": [0, 1, 2, 3, 4]', '_ids": [0, 1, 2, 3, 4, 5, 6]', "request 0: has 8 rows for 7 prompt"),
        ("counts.json", "[0, 1, 2, 3, 4, 5]", "[0, 1, 2, 3, 4]", "rows of different lengths"),
        ("counts.json", "[0, 1, 2", "[0.5, 1, 2", "holds float64 values; must be whole numbers"),
        ("counts.json", "[0, 1, 2", "[-4, 1, 2", "has -4; must be 0 to"),
        ("matrix.csv", "6,7,8", "6,7", "line 2: has 5 numbers, line 1 has 6"),
        ("long.csv", "1,2,5,8", "1,2,4,8", "column count: a .*stands there twice"),
        ("used.csv", "layer,expert\n", "layer,expert\n1,\n", "line 2, column expert: has ''; must be a whole number"),
    ],
)
def test_what_is_wrong_is_refused_by_line_and_field(tmp_path, name, old, new, message):
    path = place(tmp_path, name)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    format = next(s.format for s in SAMPLES if s.name == name)
    with pytest.raises(TraceError, match=f"{name}.*{message}"):
        import_trace(format, path, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_npz_sequences_are_decode_tokens_after_their_prompts(tmp_path):
    found = imported(tmp_path, "routes.npz", prompt_tokens=7, experts=8)
    assert found.shape.experts == 8 and found.decode.all()
    assert found.position[: 3 * 2].tolist() == [7, 7, 7, 8, 8, 8] and found.step[:6].tolist() == [1, 1, 1, 2, 2, 2]
    assert np.bincount(found.request_id).tolist() == [36, 54]
    assert np.array_equal(found.experts.reshape(30, 3, 2), choices(30))


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"experts": choices(4)}, "array seq_offsets: missing; has experts"),
        ({"experts": choices(4), "seq_offsets": np.array([0, 3])}, "array seq_offsets: must rise from 0 to the 4 tokens"),
        ({"experts": choices(4), "seq_offsets": np.array([0, 3, 2, 4])}, "array seq_offsets: must rise"),
        ({"experts": choices(4)[:, :, 0], "seq_offsets": np.array([0, 4])}, "array experts: is .*; must be .* in 3 dimensions"),
        ({"experts": choices(4) * 1.0, "seq_offsets": np.array([0, 4])}, "array experts: is float64"),
        ({"experts": choices(4) - 1, "seq_offsets": np.array([0, 4])}, "array experts: has -1 to 4"),
        ({"experts": choices(4) * 0 + 3, "seq_offsets": np.array([0, 4])}, "imported rows: column experts: row 0 has .*2 different"),
    ],
)
def test_npz_that_does_not_fit_itself_is_refused(tmp_path, arrays, message):
    path = npz(tmp_path / "r.npz", **arrays)
    with pytest.raises(TraceError, match=f"r.npz: {message}"):
        import_trace("npz", path, tmp_path / "out.parquet")


def test_npz_with_objects_or_an_impossible_size_is_refused_unread(tmp_path):
    path = npz(tmp_path / "r.npz", experts=np.array([{"a": 1}]), seq_offsets=np.array([0, 1]))
    with pytest.raises(TraceError, match="holds Python objects"):
        read("npz", path)
    out = io.BytesIO()
    np.save(out, choices(2))
    (tmp_path / "a.npy").write_bytes(out.getvalue().replace(b"(2, 3, 2), }       ", b"(2000000000,30,20)}"))
    with pytest.raises(TraceError, match="a.npy: not a readable .npy file.*needs"):
        read("vllm", tmp_path / "a.npy", Options(prompt_tokens=1))


def test_folder_of_sequences_must_have_them_all(tmp_path):
    place(tmp_path, "routes.npz")
    rows = [{"first_decode_pos": 3, "tokens": 12}, {"first_decode_pos": 5, "tokens": 18}]
    (tmp_path / "sequences.json").write_text(json.dumps(rows))
    stream = read("npz", tmp_path)
    assert [p.position[0] for p in stream.parts] == [3, 5]
    (tmp_path / "sequences.json").write_text(json.dumps(rows[:1]))
    with pytest.raises(TraceError, match="sequences.json: must be a list of the 2 sequences"):
        read("npz", tmp_path)
    rows[1]["tokens"] = 17
    (tmp_path / "sequences.json").write_text(json.dumps(rows))
    with pytest.raises(TraceError, match="sequence 1: field tokens: has 17, routes.npz has 18"):
        read("npz", tmp_path)


@pytest.mark.parametrize("name", ["requests.json", "vllm.jsonl"])
def test_requests_split_into_prompt_and_decode_steps(tmp_path, name):
    found = imported(tmp_path, name)
    first = found.take(found.request_id == 0)
    assert first.step[::3].tolist() == [0, 0, 0, 0, 0, 1, 2, 3] and first.decode[::3].tolist() == [False] * 5 + [True] * 3
    assert np.array_equal(first.experts.reshape(8, 3, 2), choices(8, 0))
    assert len(np.unique(found.request_id)) == 3


def test_packed_and_bare_arrays_say_the_same(tmp_path):
    packed, bare = imported(tmp_path, "packed.json"), imported(tmp_path, "a.npy")
    assert np.array_equal(packed.experts, bare.experts) and np.array_equal(packed.step, bare.step)
    with pytest.raises(TraceError, match="a.npy: tells no prompt length; .*--prompt-tokens"):
        read("vllm", tmp_path / "a.npy")


def test_dense_layers_of_a_serving_engine_are_left_out_with_their_numbers_kept(tmp_path):
    experts = choices(8)
    experts[:, 1] = 0
    (tmp_path / "r.json").write_text(json.dumps({"prompt_tokens": 5, "routed_experts": experts.tolist()}))
    import_trace("vllm", tmp_path / "r.json", tmp_path / "out.parquet")
    found = read_routing(tmp_path / "out.parquet")
    assert np.unique(found.layer).tolist() == [0, 2] and found.shape.layers == 3


def test_a_folder_has_a_request_a_file_and_all_with_the_same_k(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.npz").write_bytes(sources.request_npz())
    assert len(list(read("requests", tmp_path).parts)) == 3
    np.savez(tmp_path / "3.npz", prompt_token_ids=np.arange(5), output_token_ids=np.arange(4), routed_experts=choices(8)[:, :, :1])
    with pytest.raises(TraceError, match="3.npz: has 3 layers and k = 1, the requests before it 3 and 2"):
        read("requests", tmp_path)


def test_token_lines_may_come_in_any_order_and_know_their_requests(tmp_path):
    lines = sources.token_jsonl().decode().splitlines()
    rows = [{**json.loads(line), "request_id": r} for r in ("x", "y") for line in lines]
    rows = rows[::-1]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = next(iter(read("token-jsonl", path, Options(prompt_tokens=4)).parts))
    assert np.bincount(found.request_id).tolist() == [30, 30]
    one = found.take(found.request_id == 0)
    assert np.array_equal(one.experts.reshape(10, 3, 2), choices(10)) and one.step[::3].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6]
    assert one.weights[0].tolist() == [0.75, 0.25]


@pytest.mark.parametrize(("name", "format"), [("tokens.jsonl", "token-jsonl"), ("batches.jsonl", "batch-jsonl")])
def test_lines_that_end_inside_a_token_are_refused(tmp_path, name, format):
    path = place(tmp_path, name)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(TraceError, match=r"request \d, token \d: has the layers \[0, 1\], the trace has 3 of them"):
        read(format, path)


def test_batches_are_one_event_a_step_and_layer(tmp_path):
    from traces.replay import events

    found = imported(tmp_path, "batches.jsonl")
    assert [(e.step, e.layer, e.tokens) for e in events(found)] == [(s, layer, 4) for s in range(1, 5) for layer in range(3)]


def test_counts_in_every_shape(tmp_path):
    assert np.array_equal(imported(tmp_path, "counts.json").counts, np.arange(18).reshape(1, 3, 6))
    assert np.array_equal(imported(tmp_path, "matrix.csv").counts, np.arange(18).reshape(1, 3, 6))
    assert np.array_equal(imported(tmp_path, "counts.npz").counts, np.arange(36).reshape(2, 3, 6))
    w, i, j = np.indices((2, 3, 6))
    assert np.array_equal(imported(tmp_path, "long.csv").counts, w + i + j)
    want = np.zeros((3, 6), int)
    for token in choices(10):
        for layer, experts in enumerate(token):
            want[layer, experts] += 1
    assert np.array_equal(imported(tmp_path, "used.csv").counts[0], want)


def test_sglang_tokens_follow_their_requests_through_the_passes(tmp_path):
    """Slots become experts; the two prompts are requests 0 and 1; only request 0 is in the last pass."""
    found = imported(tmp_path, "tokens.pt")
    slots = np.stack([np.random.default_rng(i).permutation(6) for i in range(3)])
    assert found.shape.k == 2 and found.shape.experts == 6 and len(found) == 8 * 3
    rows = found.take(found.layer == 0)
    told = list(zip(rows.request_id.tolist(), rows.position.tolist(), rows.step.tolist(), strict=True))
    assert told == [(0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 1, 0), (0, 3, 1), (1, 2, 1), (1, 3, 2)]
    assert np.array_equal(rows.experts[:5], slots[0][choices(5, 0)[:, 0]])


def test_sglang_counts_sum_the_copies_of_an_expert(tmp_path):
    found = imported(tmp_path, "passes.pt")
    physical = np.arange(18).reshape(3, 6)
    want = np.stack([np.concatenate([p[:, :2] + p[:, 4:], p[:, 2:4]], axis=1) for p in (physical, physical + 1, physical + 2)])
    assert np.array_equal(found.counts, want)
    assert np.array_equal(imported(tmp_path, "stat.pt").counts, np.arange(36).reshape(2, 3, 6))


def test_sglang_runs_no_code_of_the_file(tmp_path):
    import torch

    torch.save({"records": [Path("x")]}, tmp_path / "evil.pt")
    with pytest.raises(TraceError, match="evil.pt: not a readable torch file"):
        read("sglang", tmp_path / "evil.pt")


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("azuer", {}, "format 'azuer': unknown; did you mean 'azure'"),
        ("azure", {"seed": 3}, "--seed: the format azure does not use it"),
        ("azure", {"rows": 21}, "azure.csv: has 20 rows; --rows says 21"),
    ],
)
def test_options_are_checked(tmp_path, format, options, message):
    with pytest.raises(TraceError, match=message):
        read(format, place(tmp_path, "azure.csv"), Options(**options))


def test_experts_beyond_the_stated_number_are_refused(tmp_path):
    with pytest.raises(TraceError, match="has expert 5; --experts says 5"):
        read("npz", place(tmp_path, "routes.npz"), Options(experts=5))


def test_servegen_bursts_as_told():
    """A Gamma client of shape 1/16 has gaps of CV 4."""
    from traces.importers.servegen import _gaps

    gaps = _gaps(np.random.default_rng(0), 200_000, 0, "Gamma", 1 / 16, "w")
    assert gaps.std() / gaps.mean() == pytest.approx(4, rel=0.03)
    weibull = _gaps(np.random.default_rng(0), 400_000, 0, "Weibull", 0.5, "w")
    assert weibull.std() / weibull.mean() == pytest.approx(5**0.5, rel=0.03)


def test_a_file_without_a_last_line_feed_says_so(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_bytes(sources.azure()[:-1])
    assert "no line feed" in read("azure", path).provenance.facts["note"]
    path.write_bytes(sources.azure())
    assert "note" not in read("azure", path).provenance.facts
