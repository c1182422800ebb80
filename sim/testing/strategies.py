"""Hypothesis strategies: models, policies, requests, machines, and whole runs for a scheduler.

Needs `hypothesis`, which the rest of the package does not.
"""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st

from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.schedulers.policy import Policy
from sim.tasks import PS_PER_S
from sim.testing.cases import Case, machine, requests, tiny_model


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Small decoders: 1 to 4 layers, 1 to 6 experts, possibly a leading dense layer or sliding windows."""
    layers = draw(st.integers(1, 4))
    dense = draw(st.integers(0, min(1, layers - 1)))
    return tiny_model(layers, draw(st.integers(1, 6)), dense, draw(st.sampled_from([0, 0, 5])))


@st.composite
def policies(draw: st.DrawFn, model: ModelSpec) -> Policy:
    """Up to 6 micro-batches of up to 3 sequences, with every knob turned at times."""
    microbatch = draw(st.integers(1, 3))
    batch = draw(st.integers(microbatch, 6 * microbatch))
    return Policy(
        batch=batch,
        microbatch=microbatch,
        pages=draw(st.none() | st.integers(1, 7)),
        static_experts=draw(st.just(0) | st.integers(0, model.experts)),
        prefill_microbatch=draw(st.none() | st.integers(1, microbatch)),
        padded=draw(st.booleans()),
        refill=draw(st.sampled_from([0.125, 0.5, 1.0])),
    )


@st.composite
def runs(draw: st.DrawFn) -> Case:
    """A model, a policy, and requests whose lengths are equal and known, unequal and known, or not known."""
    model = draw(models())
    policy = draw(policies(model))
    count = draw(st.integers(1, 2 * policy.batch))
    prompts = draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    kind = draw(st.sampled_from(["equal", "unequal", "unknown"]))
    if kind == "equal":
        lengths = [draw(st.integers(1, 7))] * count
    else:
        lengths = draw(st.lists(st.integers(1, 6), min_size=count, max_size=count))
    every = draw(st.sampled_from([0, 0, PS_PER_S // 1000]))
    made = requests(prompts, lengths, known=kind != "unknown", longest=draw(st.integers(0, 9)), every_ps=every)
    return Case(f"drawn, lengths {kind}", model, policy, made, tuple(lengths))


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Machines on which any lane may be the slow one."""
    return machine(Random(draw(st.integers(0, 2**32 - 1))))
