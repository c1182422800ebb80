"""The body that `ticket` hands out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sim.body import LANE
from sim.errors import UserError
from sim.models import load
from sim.ops import tiles as moe
from sim.plan import Plan
from sim.schedulers.policy import Policy
from sim.schedulers.ticket import FUSED_TOKENS, Ticket, body_of, layer_plan, tiles_of

MODEL, POLICY = load("tiny-mixtral"), Policy(batch=1, microbatch=1)
TILING = moe.Tiling(tokens=4, experts=MODEL.experts, rows=3, gate_up=MODEL.ffn // 2, down=MODEL.hidden // 4, combine=MODEL.hidden // 2)


def labels(plan: Plan) -> list[tuple[str, int, int]]:
    return [(t.op, t.microbatch, t.page) for t in plan.tasks()]


def test_order_of_a_small_layer() -> None:
    """One token, two slots. Columns of the result that are complete are combined while the next are made."""
    found = labels(body_of(tiles_of(MODEL, 1, TILING)))
    join = ("join", -1, -1)
    assert MODEL.top_k == 2
    assert found == [
        ("route_tile", 0, 0), join, ("dispatch_tile", 0, 0), join,
        ("gate_up_tile", 0, 0), ("gate_up_tile", 0, 1), join, ("gate_up_tile", 1, 0), ("gate_up_tile", 1, 1), join,
        ("down_tile", 0, 0), ("down_tile", 1, 0), ("down_tile", 0, 1), ("down_tile", 1, 1), join,
        ("down_tile", 0, 2), ("down_tile", 1, 2), ("down_tile", 0, 3), ("down_tile", 1, 3), join,
        ("combine_tile", 0, 0), ("combine_tile", 0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 200])
def test_every_tile_once_in_an_order_that_respects_dependencies(tokens: int) -> None:
    tiles = tiles_of(MODEL, tokens)
    plan = body_of(tiles)
    owner = plan.first + np.repeat(np.arange(len(plan)), np.diff(plan.dep_ptr))
    assert (plan.dep < owner).all() and plan.lanes == (LANE,)
    found = [label for label in labels(plan) if label[0] != "join"]
    wanted = {("route_tile", b, c) for b in range(tiles.token_blocks) for c in range(tiles.route_chunks)}
    wanted |= set() if tiles.decode else {("dispatch_tile", b, 0) for b in range(tiles.token_blocks)}
    wanted |= {("gate_up_tile", s, c) for s in range(tiles.slots) for c in range(tiles.gate_up_chunks)}
    wanted |= {("down_tile", s, c) for s in range(tiles.slots) for c in range(tiles.down_chunks)}
    wanted |= {("combine_tile", b, c) for b in range(tiles.token_blocks) for c in range(tiles.combine_chunks)}
    assert len(found) == len(wanted) and set(found) == wanted


def test_a_tile_waits_for_all_that_it_reads() -> None:
    """Through the joins: a down tile for every gate-up tile of its slot, a combine tile for its columns of all slots."""
    tiles = tiles_of(MODEL, 6, TILING)
    plan = body_of(tiles)
    tasks = list(plan.tasks())

    def behind(number: int) -> set[tuple[str, int, int]]:
        reached, todo = set(), [number]
        while todo:
            for d in tasks[todo.pop()].deps:
                todo += [d] if d not in reached else []
                reached.add(d)
        return {(tasks[d].op, tasks[d].microbatch, tasks[d].page) for d in reached}

    for task in tasks:
        if task.op == "down_tile":
            assert {(op, s, c) for op, s, c in behind(task.number) if op == "gate_up_tile"} == {
                ("gate_up_tile", task.microbatch, c) for c in range(2)
            }
        if task.op == "combine_tile":
            downs = {(s, c) for op, s, c in behind(task.number) if op == "down_tile"}
            assert downs == {(s, c) for s in range(tiles.slots) for c in (2 * task.page, 2 * task.page + 1)}
        if task.op == "gate_up_tile":
            assert {b for op, b, _ in behind(task.number) if op == "dispatch_tile"} == {0, 1}


def test_tiles_state_their_sizes() -> None:
    """The last of each kind is smaller: 70 tokens, 96 FFN columns and 64 hidden ones by tiles of 64, 40, 48 and 48."""
    spec = replace(MODEL, hidden=64, ffn=96)
    tiles = tiles_of(spec, 70, moe.Tiling(tokens=64, experts=spec.experts, rows=64, gate_up=40, down=48, combine=48))
    sizes: dict[str, set[tuple[int, int]]] = {}
    for t in body_of(tiles).tasks():
        if t.lane:
            sizes.setdefault(t.op, set()).add((t.work.tokens, t.work.columns))
    experts = spec.experts
    assert sizes == {
        "route_tile": {(64, experts), (6, experts)}, "dispatch_tile": {(64, 1), (6, 1)}, "gate_up_tile": {(64, 40), (64, 16)},
        "down_tile": {(64, 48), (64, 16)}, "combine_tile": {(64, 48), (64, 16), (6, 48), (6, 16)},
    }  # fmt: skip


def test_layers_of_equal_rows_share_a_body() -> None:
    """Prompts run kernel by kernel; so does a layer without experts."""
    made = Ticket(MODEL, POLICY)
    assert made.body(3) is made.body(3) and made.body(FUSED_TOKENS) is not None and made.body(FUSED_TOKENS + 1) is None
    (one,) = layer_plan(MODEL, 5).tasks()
    assert one.op == "fused_moe" and one.body is not None and one.body.digest() == Ticket(MODEL, POLICY).body(5).digest()


def test_tilings_suit_the_kernels() -> None:
    """Few tokens: the decode form, enough tiles to fill a large GPU; many: tiles of at most 64 by 64."""
    qwen = load("qwen3-30b-a3b")
    one = tiles_of(qwen, 1)
    assert one.decode and one.slots == 8 and one.slots * one.gate_up_chunks >= 1000 and one.tiling.down % 4 == 0
    many = tiles_of(qwen, 4096)
    assert not many.decode and max(many.tiling.rows, many.tiling.down, 2 * many.tiling.gate_up, many.tiling.tokens) == 64


def test_sizes_that_do_not_fit_together() -> None:
    with pytest.raises(UserError, match="tiling: combine columns 6 must be a multiple"):
        Ticket(MODEL, POLICY, tiling=TILING._replace(down=4, combine=6)).body(1)
