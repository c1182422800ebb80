"""Launch orders, written out by hand from MoE-Lightning's Algorithm 1, its released code and Fig. 6.

Model of 3 layers, 4 micro-batches. A token is an op with its layer and micro-batch (or page):
E embed, P pre_attn, A attention, F post_attn ("FFN"), S sample, O offload_qkv, L load_hidden,
H hidden_to_gpu, h hidden_to_cpu, W page_to_gpu, w page_to_pin, D layer_to_gpu, K kv_to_gpu, k kv_to_cpu.
"""

from __future__ import annotations

from sim.events import Arrived, Request
from sim.plan import Plan
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from sim.tasks import Task
from sim.testing.cases import tiny_model

LETTERS = {
    "embed": "E", "pre_attn": "P", "attn_decode": "A", "attn_prefill": "A", "post_attn": "F", "sample": "S", "offload_qkv": "O",
    "load_hidden": "L", "hidden_to_gpu": "H", "hidden_to_cpu": "h", "page_to_gpu": "W", "page_to_pin": "w", "layer_to_gpu": "D",
    "kv_to_gpu": "K", "kv_to_cpu": "k",
}  # fmt: skip


def plan_of(name: str, gen: int, microbatches: int = 4, **policy: object) -> Plan:
    scheduler = registry.load(name)(tiny_model(layers=3), Policy(batch=microbatches, microbatch=1, **policy))
    for i in range(microbatches):
        (*commands,) = scheduler.on(0, Arrived(Request(i, 5, gen, gen), last=i == microbatches - 1))
    (plan,) = commands
    return plan


def word(t: Task) -> str:
    places = [n for n in (t.layer, t.page if t.page >= 0 else t.microbatch) if n >= 0]
    return LETTERS[t.op] + "".join(map(str, places))


def order(plan: Plan, lane: str, step: int) -> str:
    """Ops of one step on a lane, in launch order."""
    return " ".join(word(t) for t in plan.tasks() if t.lane == lane and t.step == step)


def words(text: str) -> str:
    return " ".join(text.split())


CGOPIPE_GPU = """
    E0 P00  E1 P01
    F00 E2 P02  F01 E3 P03  F02 P10  F03 P11
    F10 P12  F11 P13  F12 P20  F13 P21
    F20 S0 P22  F21 S1 P23  F22 S2  F23 S3
"""


def test_cgopipe_step_on_the_gpu() -> None:
    """PostAttn(i, k), then PreAttn of k + 2, which wraps into the next layer except at the last."""
    assert order(plan_of("cgopipe", gen=4), "gpu", 2) == words(CGOPIPE_GPU)


def test_cgopipe_step_on_h2d() -> None:
    """Hidden before page, page k of layer i + 1 beside micro-batch k of layer i; layer 0 during the last."""
    assert order(plan_of("cgopipe", gen=4), "h2d", 2) == words("""
        L00 W10  L01 W11  L02 W12  L03 W13
        L10 W20  L11 W21  L12 W22  L13 W23
        L20 W00  L21 W01  L22 W02  L23 W03
    """)


def test_cgopipe_step_on_the_pin_lane() -> None:
    """Two slots ahead of the GPU copy; what wraps beyond the last layer is the next prologue's."""
    assert order(plan_of("cgopipe", gen=4), "pin", 2) == words("""
        w10 w11
        w12 w13 w20 w21
        w22 w23 w00 w01
        w02 w03
    """)


def test_cgopipe_step_on_cpu_and_d2h() -> None:
    plan = plan_of("cgopipe", gen=4)
    attention = "A00 A01 A02 A03 A10 A11 A12 A13 A20 A21 A22 A23"
    assert order(plan, "cpu", 2) == attention
    assert order(plan, "d2h", 2) == attention.replace("A", "O")


def test_cgopipe_launches_in_the_order_of_algorithm_1() -> None:
    """Across lanes: load_hidden, page, post_attn, then front of k + 2, then to-pin."""
    text = " ".join(word(t) for t in plan_of("cgopipe", gen=4).tasks() if t.step == 2 and t.lane is not None)
    assert text.startswith(words("""
        E0 P00 O00 A00 w10   E1 P01 O01 A01 w11
        L00 W10 F00 E2 P02 O02 A02 w12
        L01 W11 F01 E3 P03 O03 A03 w13
        L02 W12 F02 P10 O10 A10 w20
    """))


def test_cgopipe_last_step_streams_for_no_step_that_will_not_come() -> None:
    plan = plan_of("cgopipe", gen=4)
    assert order(plan, "gpu", 3) == words(CGOPIPE_GPU)
    assert order(plan, "h2d", 3) == words("""
        L00 W10  L01 W11  L02 W12  L03 W13
        L10 W20  L11 W21  L12 W22  L13 W23
        L20 L21 L22 L23
    """)
    assert order(plan, "pin", 3) == "w10 w11 w12 w13 w20 w21 w22 w23"
    assert order(plan, "h2d", 4) == ""


def test_cgopipe_with_one_micro_batch_wraps_into_the_next_layer() -> None:
    plan = plan_of("cgopipe", gen=4, microbatches=1)
    assert order(plan, "gpu", 2) == "E0 P00 F00 P10 F10 P20 F20 S0"
    assert order(plan, "h2d", 2) == "L00 W10 L10 W20 L20 W00"
    assert order(plan, "pin", 2) == "w10 w20 w00"


def test_cgopipe_shares_pages_out_over_fewer_slots() -> None:
    """5 pages over 2 micro-batches: 2 beside the first, 3 beside the second."""
    plan = plan_of("cgopipe", gen=4, microbatches=2, pages=5)
    assert order(plan, "h2d", 3).startswith("L00 W10 W11 L01 W12 W13 W14 L10 W20")


def test_prefill_is_zigzag_with_whole_layers() -> None:
    """Layer i + 1 in one copy behind the first two activations of layer i; nothing reloaded in layer 0;
    layer 0 for the first decode step during the last layer."""
    plan = plan_of("cgopipe", gen=4)
    assert order(plan, "h2d", 0) == words("""
        D0 D1
        H10 H11 D2 H12 H13
        H20 H21 D0 H22 H23
    """)
    assert order(plan, "gpu", 0) == words("""
        E0 P00 A00 F00  E1 P01 A01 F01  E2 P02 A02 F02  E3 P03 A03 F03
        P10 A10 F10  P11 A11 F11  P12 A12 F12  P13 A13 F13
        P20 A20 F20 S0  P21 A21 F21 S1  P22 A22 F22 S2  P23 A23 F23 S3
    """)
    assert order(plan, "d2h", 0) == words("""
        k00 h00 k01 h01 k02 h02 k03 h03
        k10 h10 k11 h11 k12 h12 k13 h13
        k20 k21 k22 k23
    """)


def test_prefill_alone_streams_nothing_behind_it() -> None:
    assert order(plan_of("cgopipe", gen=1), "h2d", 0) == "D0 D1 H10 H11 D2 H12 H13 H20 H21 H22 H23"


def test_prefill_of_two_micro_batches_keeps_them_on_the_gpu() -> None:
    plan = plan_of("cgopipe", gen=4, microbatches=2)
    assert order(plan, "h2d", 0) == "D0 D1 D2 D0"
    assert order(plan, "d2h", 0) == "k00 k01 k10 k11 k20 k21"


def test_fastdecode_moves_a_layer_as_one_block_behind_its_last_hidden() -> None:
    """S2: the pipeline of CGOPipe; the next layer's first hidden states queue behind its weights."""
    plan = plan_of("fastdecode", gen=4)
    assert order(plan, "gpu", 2) == words(CGOPIPE_GPU)
    assert order(plan, "h2d", 2) == "L00 L01 L02 L03 D1 L10 L11 L12 L13 D2 L20 L21 L22 L23 D0"
    assert order(plan, "h2d", 3) == "L00 L01 L02 L03 D1 L10 L11 L12 L13 D2 L20 L21 L22 L23"
    assert order(plan, "pin", 2) == ""


def test_flexgen_c_overlaps_nothing() -> None:
    """S3: an attention pass (pre, D1, CPU attention, D2 of one micro-batch, then of the next), then the
    experts; a layer's experts come with its own first micro-batch."""
    plan = plan_of("flexgen-c", gen=4)
    assert order(plan, "gpu", 2) == FLEXGEN_C_GPU
    assert order(plan, "h2d", 2) == "D0 L00 L01 L02 L03 D1 L10 L11 L12 L13 D2 L20 L21 L22 L23"
    assert order(plan, "cpu", 2) == "A00 A01 A02 A03 A10 A11 A12 A13 A20 A21 A22 A23"
    attentions = [t for t in plan.tasks() if t.op == "attn_decode" and t.step == 2]
    fronts = {(t.layer, t.microbatch): t for t in plan.tasks() if t.op == "pre_attn" and t.step == 2}
    loads = {(t.layer, t.microbatch): t.number for t in plan.tasks() if t.op == "load_hidden" and t.step == 2}
    assert all(t.work.variant == "expanded" for t in attentions)
    assert all(loads[1, k - 1] in fronts[1, k].deps for k in range(1, 4)), "the host waits for each attention"


FLEXGEN_C_GPU = words("""
    E0 P00 E1 P01 E2 P02 E3 P03  F00 F01 F02 F03
    P10 P11 P12 P13  F10 F11 F12 F13
    P20 P21 P22 P23  F20 S0 F21 S1 F22 S2 F23 S3
""")


def test_flexgen_separates_attention_from_experts() -> None:
    """sep_layer: caches come beside attention only, the first one beside the last experts of the layer
    before; a layer's experts come with its own first micro-batch, when the layer before is done."""
    plan = plan_of("flexgen", gen=4)
    assert order(plan, "gpu", 2) == words("""
        E0 P00 A00 E1 P01 A01 E2 P02 A02 E3 P03 A03  F00 F01 F02 F03
        P10 A10 P11 A11 P12 A12 P13 A13  F10 F11 F12 F13
        P20 A20 P21 A21 P22 A22 P23 A23  F20 S0 F21 S1 F22 S2 F23 S3
    """)
    assert order(plan, "h2d", 2) == "D0 K00 K01 K02 K03 K10 D1 K11 K12 K13 K20 D2 K21 K22 K23"
    at = {word(t): t for t in plan.tasks() if t.step == 2}
    assert at["F03"].number in at["D1"].deps and at["F02"].number in at["K10"].deps
    assert at["D1"].work.variant == "host"
    before = {word(t): t for t in plan.tasks() if t.step == 1}
    assert before["F23"].number in at["D0"].deps, "the next step begins when this one is over"


def test_cgopipe_with_attention_on_the_gpu_prefetches_the_next_cache() -> None:
    """S4 as drawn, CGOPipe's fall-back for attention on the GPU."""
    plan = plan_of("cgopipe", gen=4, attention="gpu")
    assert order(plan, "gpu", 2) == words("""
        E0 P00 A00 F00 E1 P01 A01 F01 E2 P02 A02 F02 E3 P03 A03 F03
        P10 A10 F10 P11 A11 F11 P12 A12 F12 P13 A13 F13
        P20 A20 F20 S0 P21 A21 F21 S1 P22 A22 F22 S2 P23 A23 F23 S3
    """)
    assert order(plan, "h2d", 2) == "K00 D1 K01 K02 K03 K10 D2 K11 K12 K13 K20 D0 K21 K22 K23"
    assert order(plan, "d2h", 2) == "k00 k01 k02 k03 k10 k11 k12 k13 k20 k21 k22 k23"


def test_deepspeed_streams_whole_layers_beside_the_batch() -> None:
    plan = plan_of("deepspeed", gen=4)
    assert order(plan, "h2d", 0) == "D0 D1 D2 D0"
    assert order(plan, "h2d", 2) == "D1 D2 D0"
    assert order(plan, "gpu", 2).startswith("E0 P00 A00 F00 E1 P01 A01 F01 E2 P02")
    assert set(plan.lanes) == {"gpu", "h2d"}


def test_resident_takes_each_micro_batch_through_all_layers() -> None:
    plan = plan_of("resident", gen=4, microbatches=2)
    through = "E0 P00 A00 F00 P10 A10 F10 P20 A20 F20 S0 E1 P01 A01 F01 P11 A11 F11 P21 A21 F21 S1"
    assert [order(plan, "gpu", step) for step in range(5)] == [through] * 4 + [""]
    assert plan.lanes == ("gpu",)
