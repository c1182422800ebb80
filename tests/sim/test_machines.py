"""Built-in machines are whole and plausible; bad files end in one line that names every field."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sim import machines
from sim.costs import CostModel
from sim.errors import UserError
from sim.models import load as load_model
from sim.tasks import Work

LANES = ("gpu", "cpu", "h2d", "d2h", "pin")
RANKS = ("2xa100", "4xh100", "8xh20", "8xh800", "2x8h100", "8x8h100")
"""Machines that have a topology only."""


@pytest.mark.parametrize("name", [name for name in machines.names() if machines.load(name).lanes])
def test_builtin_machines_have_what_schedulers_need(name: str) -> None:
    machine = machines.load(name)
    assert machine.name == name
    assert tuple(machine.lane) == ((*LANES, "nvme") if name == "rtx4060" else LANES)
    assert {"gpu.flops", "gpu.memory", "cpu.flops", "cpu.memory", "link.h2d", "link.d2h"} <= set(machine.resources)
    assert set(machine.memories) == {"gpu", "cpu", "pinned"}
    assert all(r.source for r in [*machine.resources.values(), *machine.memories.values(), *machine.ops])


def test_names() -> None:
    assert set(machines.names()) == {"t4", "l4", "2xt4", "4xt4", "a100", "h100", "h200", "8xh100", "rtx4060", *RANKS}
    assert machines.rig_names() == ("laptop-rig",)


@pytest.mark.parametrize(
    ("name", "op", "lane", "gigabytes_per_s"),
    [
        ("t4", "layer_to_gpu", "h2d", 5.43), ("l4", "layer_to_gpu", "h2d", 5.44), ("t4", "page_to_gpu", "h2d", 11.0),
        ("l4", "page_to_gpu", "h2d", 11.0), ("t4", "page_to_pin", "pin", 7.4), ("l4", "page_to_pin", "pin", 10.9),
        ("l4", "load_hidden", "h2d", 12.1),
    ],
)  # fmt: skip
def test_effective_copy_rates_of_the_paper_boxes(name: str, op: str, lane: str, gigabytes_per_s: float) -> None:
    costs = CostModel(machines.load(name), load_model("mixtral-8x7b"))
    seconds = costs.solo_ps(lane, Work(op, bytes=10**10)) / 1e12
    assert 10 / seconds == pytest.approx(gigabytes_per_s, rel=1e-3)


def test_l4_attention_and_experts_match_fig_9() -> None:
    """CPU attention of 128 sequences at context 512: 6.32 ms (36-50 GB/s); MoE FFN of 128 tokens: 12.5 ms."""
    model = load_model("mixtral-8x7b")
    costs = CostModel(machines.load("l4"), model)
    attention = costs.solo_ps("cpu", Work("attn_decode", tokens=128, sequences=128, context=128 * 512)) / 1e9
    assert attention == pytest.approx(6.32, rel=0.1)
    post = costs.solo_ps("gpu", Work("post_attn", tokens=128, sequences=128, experts=8)) / 1e9
    assert post == pytest.approx(12.5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "op", "variant", "gigabytes_per_s"),
    [
        ("t4", "layer_to_gpu", "host", 7.2), ("l4", "layer_to_gpu", "host", 8.1), ("t4", "layer_to_gpu", "pinned", 11.0),
        ("l4", "layer_to_gpu", "pinned", 11.1), ("4xt4", "layer_to_gpu", "host", 7.2), ("4xt4", "layer_to_gpu", "pinned", 44.0),
        ("4xt4", "page_to_gpu", "", 44.0), ("4xt4", "page_to_pin", "", 29.6), ("4xt4", "kv_to_gpu", "", 28.8),
    ],
)  # fmt: skip
def test_how_each_system_copies(name: str, op: str, variant: str, gigabytes_per_s: float) -> None:
    """Each rank streams its part of a layer; FlexGen's pipeline streams a layer for each batch in flight."""
    costs = CostModel(machines.load(name), load_model("mixtral-8x7b"))
    lane = "pin" if op == "page_to_pin" else "h2d"
    assert 10 / (costs.solo_ps(lane, Work(op, bytes=10**10, variant=variant)) / 1e12) == pytest.approx(gigabytes_per_s, rel=1e-3)


def test_a_machine_that_prices_no_variant_takes_the_op_as_it_is() -> None:
    costs = CostModel(machines.load("h100"), load_model("mixtral-8x7b"))
    copy = Work("layer_to_gpu", bytes=10**9)
    assert costs.solo_ps("h2d", copy._replace(variant="host")) == costs.solo_ps("h2d", copy)
    plain, expanded = (Work("attn_decode", 8, 8, 800, variant=v) for v in ("", "expanded"))
    assert costs.solo_ps("cpu", plain) == costs.solo_ps("cpu", expanded)
    paper = CostModel(machines.load("l4"), load_model("mixtral-8x7b"))
    assert paper.solo_ps("cpu", expanded) > 5 * paper.solo_ps("cpu", plain)


def test_fused_expert_kernel_computes_whole_tiles() -> None:
    """T4: 36 tokens over 8 experts leave 9 rows each; as tiles of 64 they are bound by FLOPs."""
    costs = CostModel(machines.load("t4"), load_model("mixtral-8x7b"))
    sizes = ((36, ""), (36, "tiled"), (256, ""))
    few, tiled, full = (costs.solo_ps("gpu", Work("post_attn", n, n, experts=8, variant=v)) for n, v in sizes)
    assert few < 0.9 * tiled
    assert tiled == pytest.approx(full, rel=0.05)


def test_ranks_sum_what_each_has_computed() -> None:
    model = load_model("mixtral-8x22b")
    four = machines.load("4xt4")
    alone = four.model_copy(update={"lanes": tuple(lane.model_copy(update={"ranks": 1, "peers": None}) for lane in four.lanes)})
    work = Work("post_attn", 1000, 1000, experts=8)
    seconds = [CostModel(m, model).solo_ps("gpu", work) / 1e12 for m in (four, alone)]
    bytes_crossed = 2 * 3 / 4 * 1000 * 6144 * 2
    assert seconds[0] - seconds[1] == pytest.approx(2 * (1e-4 + bytes_crossed / 5.5e9), rel=1e-6)


def test_tensor_parallel_boxes_scale_memory_and_links() -> None:
    one, four = machines.load("t4"), machines.load("4xt4")
    assert four.memories["gpu"].bytes == 4 * one.memories["gpu"].bytes
    assert four.resources["gpu.memory"].capacity == 4 * one.resources["gpu.memory"].capacity
    assert four.resources["link.h2d"].capacity == 4 * one.resources["link.h2d"].capacity
    assert four.resources["link.peer"].capacity == one.resources["link.h2d"].capacity


def test_rig_is_refused_and_says_what_to_run(tmp_path: Path) -> None:
    command = r"is a rig without measured op times; run: python -m exec calibrate --rig laptop-rig -o PROFILE\.yaml"
    with pytest.raises(UserError, match="machine laptop-rig " + command):
        machines.load("laptop-rig")
    own = tmp_path / "mine.yaml"
    own.write_text("kind: rig\nname: mine\n")
    with pytest.raises(UserError, match="is a rig"):
        machines.load(own)


def test_rig_loads_and_is_validated(tmp_path: Path) -> None:
    rig = machines.load_rig("laptop-rig")
    assert rig.links["h2d"].bytes_per_s == 1e9
    values = rig.model_dump()
    del values["memories"]["pinned"]
    with pytest.raises(UserError, match=r"memories\.pinned: missing"):
        machines.load_rig(write(tmp_path, values))


def write(directory: Path, values: Any) -> Path:
    path = directory / "m.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False))
    return path


def t4() -> dict[str, Any]:
    values = machines.load("t4").model_dump(mode="json", exclude_defaults=True)
    assert isinstance(values, dict)
    return values


def test_a_profile_file_round_trips(tmp_path: Path) -> None:
    machine = machines.load(write(tmp_path, t4()))
    assert machine == machines.load("t4")
    assert machine.digest == machines.load("t4").digest


@pytest.mark.parametrize("capacity", [0, -12.1e9])
def test_zero_or_negative_capacity(tmp_path: Path, capacity: float) -> None:
    values = t4()
    values["resources"]["link.h2d"]["capacity"] = capacity
    with pytest.raises(UserError, match=r"m\.yaml: resources\.link\.h2d\.capacity: .*greater than 0"):
        machines.load(write(tmp_path, values))


def test_what_is_no_number(tmp_path: Path) -> None:
    """As a calibration that went wrong would leave it."""
    values = t4()
    values["ops"][0]["latency_s"] = float("nan")
    with pytest.raises(UserError, match=r"m\.yaml: ops\[0\]\.latency_s: .*finite number"):
        machines.load(write(tmp_path, values))


def test_implausible_capacity(tmp_path: Path) -> None:
    values = t4()
    values["resources"]["link.h2d"]["capacity"] = 1e15
    with pytest.raises(UserError, match=r"outside the plausible range 100000 to 1e\+13 of a link"):
        machines.load(write(tmp_path, values))


@pytest.mark.parametrize(("memory", "pool"), [(0, 1), (-1, 1), (1, 0), (1, -2)])
def test_zero_or_negative_memory_and_pool(tmp_path: Path, memory: int, pool: int) -> None:
    values = t4()
    values["memories"]["gpu"]["bytes"] = memory
    values["pools"] = {"credits": pool}
    with pytest.raises(UserError, match=r"memories\.gpu\.bytes|pools\.credits"):
        machines.load(write(tmp_path, values))


def test_all_errors_at_once_in_one_line(tmp_path: Path) -> None:
    values = t4()
    del values["resources"]["gpu.flops"]["source"]
    values["lanes"][0]["order"] = "sorted"
    values["colour"] = "green"
    with pytest.raises(UserError) as e:
        machines.load(write(tmp_path, values))
    message = str(e.value)
    assert "\n" not in message
    assert "resources.gpu.flops.source: missing" in message
    assert "lanes[0].order: Input should be" in message
    assert "colour: unknown field" in message


def test_references_are_checked(tmp_path: Path) -> None:
    values = t4()
    values["lanes"][0]["memory"] = "gpu.hbm"
    with pytest.raises(UserError, match=r"lanes\.gpu\.memory: no resource 'gpu\.hbm'; have gpu\.flops"):
        machines.load(write(tmp_path, values))


@pytest.mark.parametrize("text", ["resources: {a: [1", "\tname: x", "name: 'x", "- 1\n- 2\n", ""])
def test_malformed_or_truncated_yaml(tmp_path: Path, text: str) -> None:
    broken, other = r"line \d+ column \d+: malformed or truncated YAML", r"holds (nothing|a list); a YAML mapping"
    with pytest.raises(UserError, match=rf"m\.yaml: ({broken}|{other})"):
        machines.load(write(tmp_path, text))


def test_truncated_machine_names_what_is_missing(tmp_path: Path) -> None:
    whole = yaml.safe_dump(t4(), sort_keys=False)
    with pytest.raises(UserError, match=r"ops: missing"):
        machines.load(write(tmp_path, whole[: whole.index("\nops:")]))


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="--machine: unknown name '2xt5'; did you mean '2xt4'"):
        machines.load("2xt5")
    with pytest.raises(UserError, match="--rig: unknown name 'laptop'; did you mean 'laptop-rig'|have laptop-rig"):
        machines.load_rig("laptop")
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        machines.load("nowhere.yaml")


def test_a_lane_that_is_missing_is_named() -> None:
    machine = machines.load("t4")
    short = machine.model_copy(update={"lanes": tuple(x for x in machine.lanes if x.name != "pin")})
    with pytest.raises(UserError, match="machine t4: no lane 'pin'; have gpu, cpu, h2d, d2h"):
        CostModel(short, load_model("mixtral-8x7b")).solo_ps("pin", Work("page_to_pin", bytes=1))


def test_a_changed_copy_derives_everything_anew() -> None:
    machine = machines.load("l4")
    before = machine.digest, machine.lane["h2d"]
    changed = machine.model_copy(update={"lanes": tuple(x.model_copy(update={"servers": 2}) for x in machine.lanes)})
    assert changed.digest != before[0] and changed.lane["h2d"].servers == 2 and machine.lane["h2d"] == before[1]


def test_a_lane_names_each_resource_once(tmp_path: Path) -> None:
    text = (Path(machines.__file__).parent / "l4.yaml").read_text()
    path = tmp_path / "twice.yaml"
    path.write_text(text.replace("path: [cpu.memory], home: pinned", "path: [cpu.memory, cpu.memory], home: pinned"))
    with pytest.raises(UserError, match="lanes.pin: names a resource twice"):
        machines.load(path)
