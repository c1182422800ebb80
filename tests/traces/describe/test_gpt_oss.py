"""`describe` on recorded routing gives the figures of the survey (placement.md 3.2), within 3 %: our sequences are a superset."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.traces.shared_data import folder
from traces.describe import balance, describe, drift
from traces.importers import Options, import_trace

SURVEY = {
    "max_over_mean": 2.39, "worst": 3.51, "gini": 0.386, "log_spread": 1.14, "overlap": 1.72, "independent": 0.74, "8": 13.1, "32": 20.1,
    "64": 22.6, "markov": 0.58, "popularity": 0.27, "batch 8": 0.573, "batch 32": 0.659, "batch 128": 0.694,
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("gptoss") / "r.parquet"
    import_trace("npz", folder("gptoss20b_routing"), path, Options(model="gpt-oss-20b"))
    return describe(path).as_json()


@pytest.mark.parametrize("name", SURVEY)
def test_gpt_oss_20b(found, name):
    load, batches = found["load"], {f"batch {b['tokens']}": b["balancedness"] for b in found["batches_of_random_tokens"]}
    figures = {
        "max_over_mean": load["max_over_mean"], "worst": load["max_over_mean_worst"], "gini": load["gini"],
        "log_spread": load["log_spread"], "overlap": found["overlap"]["mean"], "independent": found["overlap"]["independent"],
        **found["working_set"],
        "markov": found["next_layer_recall"]["markov"], "popularity": found["next_layer_recall"]["popularity"], **batches,
    }  # fmt: skip
    assert figures[name] == pytest.approx(SURVEY[name], rel=0.03)


def test_the_json_object_is_plain(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["rows"] == 1_474_152 and found["requests"] == 188 and found["locality_of"] == "decode tokens"


@pytest.mark.parametrize(
    ("model", "domain", "max_over_mean", "gini", "log_spread"),
    [("olmoe_1b7b", "c4", 2.72, 0.21, 0.42), ("olmoe_1b7b", "github", 5.22, 0.49, 1.13), ("mixtral_8x7b", "c4", 1.11, 0.05, 0.11),
     ("mixtral_8x7b", "github", 1.29, 0.08, 0.14)],
)  # fmt: skip
def test_olmoe_and_mixtral(model, domain, max_over_mean, gini, log_spread):
    raw = np.load(folder("olmoe_mixtral_routing") / f"{model}_counts.npz")
    counts = raw["counts"][raw["counts_domains"].tolist().index(domain)]
    assert balance.max_over_mean(counts).mean() == pytest.approx(max_over_mean, abs=0.006)
    assert balance.gini(counts).mean() == pytest.approx(gini, abs=0.006)
    assert balance.log_spread(counts).mean() == pytest.approx(log_spread, rel=0.03)


@pytest.mark.parametrize(("model", "correlation"), [("olmoe_1b7b", -0.32), ("mixtral_8x7b", 0.41)])
def test_drift_between_domains(model, correlation):
    raw = np.load(folder("olmoe_mixtral_routing") / f"{model}_counts.npz")
    names = raw["counts_domains"].tolist()
    assert drift.correlation(*(raw["counts"][names.index(n)] for n in ("c4", "github"))) == pytest.approx(correlation, abs=0.006)
