from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from sim.report import embed
from sim.report.colours import OP_COLOURS, colour, ink
from sim.report.critical import critical_path
from sim.report.page import write_report
from sim.report.picture import write_picture
from sim.report.sections import bytes_text
from tests.sim.report_runs import US, cgopipe_like
from traces.errors import TraceError

FACTS = {
    "model": "tiny-mixtral", "machine": "laptop-rig", "workload": "mtbench", "scheduler": "cgopipe",
    "policy": {"batch": 96, "microbatch": 32}, "routing": "synthetic",
    "sources": {"h2d": "datasheet <PCIe 4>"}, "makespan_s": 0.5, "peak_bytes": {"gpu": 3 << 20},
    "measured": {"tokens_per_s": 812.0, "ttft_s": 0.25},
}  # fmt: skip


class Checker(HTMLParser):
    """Collects what a browser would load, and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.ids, self.text = [], [], set(), []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.loads += [v for k, v in found.items() if k in ("src", "href", "action") and not (v or "").startswith("data:")]
        self.ids.add(found.get("id"))
        if tag not in ("meta", "link", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    simulated, d = cgopipe_like(4, 3, 3)
    measured, _ = cgopipe_like(4, 3, 3, seed=1)
    write_report(path, simulated, replace(measured, provenance=replace(measured.provenance, clock="emulated")), FACTS, d)
    return path.read_text()


def parsed(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def test_page_is_one_file_that_loads_nothing(page):
    assert parsed(page).loads == []
    assert not re.search(r"https?://(?!www\.w3\.org|vega\.github\.io/schema)", page)
    assert "@import" not in page and "url(" not in page.split("<script")[0]
    assert len(page) < 1_500_000


def test_page_shows_the_run_its_error_and_its_facts(page):
    found = parsed(page)
    words = " ".join(found.text)
    heads = ("cgopipe, tiny-mixtral on laptop-rig", "Error of the makespan", "Critical path", "Error by op")
    for text in (*heads, "datasheet <PCIe 4>", "812 tokens/s", "TTFT 250 ms", "3.15 MB", "routing is synthetic", "paced"):
        assert text in words, text
    assert {"timeline", "lanes", "ops", "steps", "legend", "window", "critical", "data"} <= found.ids
    assert set(data_of(page)["charts"]) == {"lanes", "ops", "steps"}


def test_error_on_the_page_is_simulated_over_measured(page):
    simulated, _ = cgopipe_like(4, 3, 3)
    measured, _ = cgopipe_like(4, 3, 3, seed=1)
    shown = f"{simulated.makespan_ps / measured.makespan_ps - 1:+.1%}".replace("-", "&minus;")
    assert f'<div class="value">{shown}</div>' in page


def unpacked(clock, name, dtype):
    return np.frombuffer(base64.b64decode(clock[name]), dtype)


def test_bars_carry_the_times_of_the_timelines(page):
    simulated, d = cgopipe_like(4, 3, 3)
    clock = data_of(page)["clocks"][0]
    assert clock["count"] == len(simulated) and [lane["label"] for lane in clock["lanes"]] == ["gpu", "cpu", "h2d", "d2h", "pin"]
    assert np.array_equal(unpacked(clock, "start", "<f8"), simulated.start_ps / 1e6)
    assert np.array_equal(unpacked(clock, "duration", "<f4"), (simulated.duration_ps / 1e6).astype(np.float32))
    critical = np.flatnonzero(unpacked(clock, "critical", "<u1"))
    assert sorted(critical.tolist()) == sorted(critical_path(simulated, d).rows.tolist())
    assert unpacked(clock, "row", "<u2").tolist() == simulated.lane.tolist()


def test_page_of_one_clock_has_no_errors(tmp_path):
    measured, _ = cgopipe_like(3, 2, 2, seed=1)
    write_report(tmp_path / "r.html", None, measured, {})
    text = (tmp_path / "r.html").read_text()
    words = " ".join(parsed(text).text)
    assert "Measured run" in words and "Error by op" not in words and "Error of the makespan" not in words
    assert set(data_of(text)["charts"]) == {"lanes", "steps"} and len(data_of(text)["clocks"]) == 1


def test_facts_cannot_break_out_of_the_page(tmp_path):
    simulated, _ = cgopipe_like(2, 2, 2)
    evil = "</script><script>alert(1)</script>"
    write_report(tmp_path / "r.html", replace(simulated, ops=(evil, *simulated.ops[1:])), None, {"model": evil, "sources": {evil: evil}})
    text = (tmp_path / "r.html").read_text()
    assert evil not in text
    assert data_of(text)["clocks"][0]["ops"][0] == evil


def test_unwritable_page_is_a_trace_error(tmp_path):
    simulated, _ = cgopipe_like(2, 2, 2)
    with pytest.raises(TraceError, match="cannot be written"):
        write_report(tmp_path / "no" / "r.html", simulated, None, {})


def test_short_run_opens_whole_and_a_longer_one_at_a_step():
    short = [cgopipe_like(4, 3, 3, seed=s)[0] for s in (None, 1)]
    assert [w.label for w in embed.windows(short)] == ["Whole run", "Prefill", "Decode step 1", "Decode step 2", "Decode step 3"]
    longer = [cgopipe_like(12, 4, 3, seed=s)[0] for s in (None, 1)]
    assert [w.label for w in embed.windows(longer)] == ["Whole run", "Prefill", "Decode step 1", "Decode step 2", "Decode step 7"]
    assert embed.opening(embed.windows(short), short) == 0 and embed.opening(embed.windows(longer), longer) == 2


def test_very_long_run_carries_its_chosen_steps_only(monkeypatch):
    monkeypatch.setattr(embed, "LIMIT", 700)
    both = [cgopipe_like(12, 4, 3, seed=s)[0] for s in (None, 1)]
    shown = embed.windows(both)
    assert [w.label for w in shown] == ["Prefill", "Decode step 1", "Decode step 2", "Decode step 7"]
    assert embed.opening(shown, both) == 1
    for k, t in enumerate(both):
        rows = embed.chosen(t, [w.spans[k] for w in shown])
        assert 0 < len(rows) <= 700 and len(rows) < len(t)
        for w in shown:
            begin, end = w.spans[k]
            gpu = (t.lane == 0) & (t.start_ps < end) & (t.end_ps > begin)
            assert np.isin(np.flatnonzero(gpu), rows).all()


def test_run_without_steps_is_cut_to_its_beginning(monkeypatch):
    monkeypatch.setattr(embed, "LIMIT", 50)
    t, _ = cgopipe_like(4, 3, 3)
    t = replace(t, step=np.full_like(t.step, -1))
    (window,) = embed.windows([t])
    assert window.label == "Whole run"
    rows = embed.chosen(t, [window.spans[0]])
    assert len(rows) == 50 and t.start_ps[rows].max() <= np.sort(t.start_ps)[50]


def test_overlapping_bars_get_rows_of_their_own():
    assert embed._stack([0, 1, 2, 5, 6], [5, 3, 4, 7, 8]) == [0, 1, 2, 0, 1]
    assert embed._stack([0, 4, 8], [4, 8, 9]) == [0, 0, 0]


def test_ops_keep_their_colours_and_their_ink_is_readable():
    assert colour("post_attn") == OP_COLOURS["post_attn"] and colour("my_op") == colour("my_op")
    assert ink("#000000") == "#FFFFFF" and ink("#FFFFFF") == "#1B1F24" and ink(OP_COLOURS["post_attn"]) == "#FFFFFF"


@pytest.mark.parametrize(("count", "text"), [(17, "17 B"), (1536, "1.54 kB"), (3 << 30, "3.22 GB"), (5 * 10**15, "5,000 TB")])
def test_bytes_have_the_unit_that_fits(count, text):
    assert bytes_text(count) == text


def test_picture_is_written_in_both_formats_and_repeats_to_the_byte(tmp_path):
    simulated, _ = cgopipe_like(4, 3, 3)
    measured, _ = cgopipe_like(4, 3, 3, seed=1)
    both = {"Simulated": simulated, "Measured": measured}
    for name in ("a.svg", "b.svg", "c.png"):
        write_picture(tmp_path / name, both, step=2)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "Simulated: " in text and "decode step 2" in text and text.count("post_attn") == 1
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_picture_of_a_step_that_is_not_there_is_refused(tmp_path):
    t, _ = cgopipe_like(2, 2, 2)
    with pytest.raises(ValueError, match="step=9: the Simulated timeline has no such step"):
        write_picture(tmp_path / "a.svg", {"Simulated": t}, step=9)
    with pytest.raises(ValueError, match="no decode step in common"):
        write_picture(tmp_path / "a.svg", {"Simulated": replace(t, end_ps=t.end_ps + US, step=np.zeros_like(t.step))})
