"""Imports of the recorded data beside the repository, held against an independent count in plain Python."""

from __future__ import annotations

import csv
import gzip
import json
from datetime import datetime

import numpy as np
import pytest

from tests.traces.shared_data import folder
from traces.importers import Options, import_trace
from traces.load import read_load
from traces.requests import read_requests
from traces.routing_file import read_routing


def test_azure_2023(tmp_path):
    source = folder("azure_llm_2023") / "AzureLLMInferenceTrace_code.csv"
    made = import_trace("azure", source, tmp_path / "a.parquet", Options(rows=8819))
    found = read_requests(tmp_path / "a.parquet")
    with source.open() as f:
        rows = list(csv.DictReader(f))
    assert made.rows == len(found) == len(rows) == 8819
    assert found.prompt_tokens.tolist() == [int(r["ContextTokens"]) for r in rows]
    assert found.output_tokens.tolist() == [int(r["GeneratedTokens"]) for r in rows]
    first = datetime.fromisoformat(rows[0]["TIMESTAMP"][:-1])
    seconds = [(datetime.fromisoformat(r["TIMESTAMP"][:-1]) - first).total_seconds() for r in rows]
    assert np.allclose(found.arrival_ns / 1e9, seconds, atol=2e-6)
    assert found.provenance.made == "imported" and found.provenance.facts["source_sha256"]


def test_mooncake(tmp_path):
    source = folder("mooncake_fast25") / "conversation_trace.jsonl"
    import_trace("mooncake", source, tmp_path / "m.parquet")
    found = read_requests(tmp_path / "m.parquet")
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    assert len(found) == len(rows) == 12031
    assert found.arrival_ns.tolist() == [r["timestamp"] * 1_000_000 for r in rows]
    assert found.prompt_tokens.sum() == sum(r["input_length"] for r in rows) == 144793823
    assert found.output_tokens.sum() == sum(r["output_length"] for r in rows)
    assert [list(h) for h in found.prefix_hashes] == [r["hash_ids"] for r in rows]


def test_vidur(tmp_path):
    source = folder("vidur_traces") / "arxiv_summarization.csv"
    import_trace("vidur", source, tmp_path / "v.parquet")
    found = read_requests(tmp_path / "v.parquet")
    with source.open() as f:
        rows = list(csv.DictReader(f))
    assert len(found) == len(rows) == 28257
    assert found.prompt_tokens.tolist() == [int(r["num_prefill_tokens"]) for r in rows]
    assert found.output_tokens.tolist() == [int(r["num_decode_tokens"]) for r in rows]
    assert not found.arrival_ns.any() and "none in the source" in found.provenance.facts["arrivals"]


def test_servegen_keeps_each_window_s_rate_and_says_that_it_is_drawn(tmp_path):
    source = folder("servegen_deepseek_r1") / "top24_clients.json.gz"
    import_trace("servegen", source, tmp_path / "s.parquet", Options(hours=2, start_hour=3, seed=5))
    found = read_requests(tmp_path / "s.parquet")
    clients = json.loads(gzip.decompress(source.read_bytes()))
    windows = [w for c in clients.values() for w in c["trace"] if 10800 <= w[0] < 18000]
    assert len(found) == sum(round(w[1] * 600) for w in windows)
    counted = np.bincount((found.arrival_ns // 600_000_000_000).astype(int), minlength=12)
    wanted = [sum(round(w[1] * 600) for w in windows if w[0] == 10800 + 600 * i) for i in range(12)]
    assert np.abs(counted - wanted).max() <= len(clients)
    assert found.provenance.made == "synthetic" and "drawn" in found.provenance.origin
    allowed = {int(v) for c in clients.values() for v in c["dataset"]["0"]["output_tokens"] or {}}
    assert set(np.unique(found.output_tokens).tolist()) <= allowed | {1}
    import_trace("servegen", source, tmp_path / "t.parquet", Options(hours=2, start_hour=3, seed=6))
    other = read_requests(tmp_path / "t.parquet")
    assert len(other) == len(found) and (other.arrival_ns != found.arrival_ns).mean() > 0.99


def test_gpt_oss_routing(tmp_path):
    source = folder("gptoss20b_routing")
    made = import_trace("npz", source, tmp_path / "r.parquet", Options(model="gpt-oss-20b"))
    found = read_routing(tmp_path / "r.parquet")
    raw, rows = np.load(source / "routes.npz"), json.loads((source / "sequences.json").read_text())
    tokens = len(raw["token_ids"])
    assert made.rows == len(found) == 24 * tokens == 1_474_152
    assert (found.shape.layers, found.shape.experts, found.shape.k, found.shape.model) == (24, 32, 4, "gpt-oss-20b")
    assert np.array_equal(found.experts.reshape(tokens, 24, 4), raw["experts"])
    assert np.bincount(found.request_id).tolist() == [24 * r["tokens"] for r in rows]
    first = np.flatnonzero(np.diff(found.request_id, prepend=-1))
    assert found.position[first].tolist() == [r["first_decode_pos"] for r in rows] and (found.step[first] == 1).all()
    probs = np.load(source / "probs_subset.npz")
    weighted = np.isfinite(found.weights).all(axis=1)
    assert np.unique(found.request_id[weighted]).tolist() == probs["seq_index"].tolist()
    assert np.allclose(found.weights[weighted] * 255, probs["probs_u8"].reshape(-1, 4), atol=1e-3)


@pytest.mark.parametrize(("name", "shape"), [("mixtral_8x7b", (5, 3, 8)), ("olmoe_1b7b", (6, 3, 64))])
def test_expert_counts(tmp_path, name, shape):
    source = folder("olmoe_mixtral_routing") / f"{name}_counts.npz"
    import_trace("counts", source, tmp_path / "c.parquet", Options(model=name))
    found = read_load(tmp_path / "c.parquet")
    raw = np.load(source)["counts"]
    assert found.counts.shape == shape and np.array_equal(found.counts, raw)
    assert found.provenance.facts["window_names"].startswith("github,arxiv,c4") and found.provenance.facts["layer_numbers"] == "0,7,15"


IMPORTS = [
    ("azure", "azure_llm_2023/AzureLLMInferenceTrace_code.csv"), ("mooncake", "mooncake_fast25/conversation_trace.jsonl"),
    ("vidur", "vidur_traces/arxiv_summarization.csv"), ("servegen", "servegen_deepseek_r1/top24_clients.json.gz"),
    ("npz", "gptoss20b_routing"), ("counts", "olmoe_mixtral_routing/olmoe_1b7b_counts.npz"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "path"), IMPORTS)
def test_a_second_import_gives_the_same_bytes_wherever_the_source_lies(tmp_path, format, path):
    import shutil

    source = folder(path.split("/")[0]) / "/".join(path.split("/")[1:])
    options = Options(hours=0.5) if format == "servegen" else Options()
    import_trace(format, source, tmp_path / "one.parquet", options)
    moved = tmp_path / "elsewhere" / source.name
    moved.parent.mkdir()
    (shutil.copytree if source.is_dir() else shutil.copy)(source, moved)
    import_trace(format, moved, tmp_path / "another name.parquet", options)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "another name.parquet").read_bytes()
