"""What the routers chose is recorded, can be read back, and can be forced."""

from __future__ import annotations

import numpy as np
import pytest

from exec.runtime import TaskFailed
from sim.schedulers.policy import Policy
from tests.exec.backends.support import SPEC, execute, workload
from traces.routing import RoutingIndex, read_routing, write_routing

POLICY = Policy(batch=4, microbatch=2)
WORK = workload((5, 9, 3, 8), 4)


def _sorted(routing):
    return routing.take(np.lexsort((routing.position, routing.request_id, routing.layer, routing.step)))


def test_every_token_of_every_layer_is_recorded_once(tmp_path):
    routing = execute("cgopipe", POLICY, WORK, record_routing=True).routing
    keys = set(zip(routing.step.tolist(), routing.layer.tolist(), routing.request_id.tolist(), routing.position.tolist(), strict=True))
    expected = {(0, layer, r, p) for r, n in enumerate((5, 9, 3, 8)) for p in range(n) for layer in range(SPEC.layers)}
    expected |= {(d, layer, r, n + d - 1) for r, n in enumerate((5, 9, 3, 8)) for d in range(1, 4) for layer in range(SPEC.layers)}
    assert keys == expected and len(routing) == len(expected)
    np.testing.assert_allclose(routing.weights.sum(1), 1, rtol=1e-5)
    write_routing(tmp_path / "routing.parquet", routing)
    assert np.array_equal(read_routing(tmp_path / "routing.parquet").experts, routing.experts)


@pytest.mark.parametrize("other", ["resident", "flexgen"])
def test_the_routing_does_not_depend_on_the_schedule(other):
    a, b = (_sorted(execute(s, POLICY, WORK, record_routing=True).routing) for s in ("cgopipe", other))
    assert np.array_equal(a.experts, b.experts)


def test_late_comers_are_recorded_under_the_steps_that_they_ran_in():
    work = workload((5, 9, 3, 8, 4), (1, 4, 2, 3, 3), known=False)
    routing = execute("cgopipe", Policy(batch=2, microbatch=1), work, record_routing=True).routing
    index = RoutingIndex(routing)
    assert index.expert_tokens((4,), "prefill", 7, 0) is not None
    assert len(routing) == sum(n + g - 1 for n, g in zip((5, 9, 3, 8, 4), work[2], strict=True)) * SPEC.layers


def test_a_trace_forces_the_choice():
    """Every token goes to experts 3 and 1, in that order, and the run records what it was told."""
    first = execute("cgopipe", POLICY, WORK, record_routing=True)
    forced = first.routing.take(slice(None))
    forced.experts[:] = (3, 1)
    again = execute("cgopipe", POLICY, WORK, record_routing=True, replay_routing=RoutingIndex(forced))
    assert (again.routing.experts == (3, 1)).all()
    assert again.tokens != first.tokens
    same = execute("cgopipe", POLICY, WORK, replay_routing=RoutingIndex(execute("resident", POLICY, WORK, record_routing=True).routing))
    assert same.tokens == first.tokens


def test_a_trace_of_another_workload_is_refused():
    index = RoutingIndex(execute("resident", POLICY, WORK, record_routing=True).routing)
    with pytest.raises(TaskFailed, match="routing trace: prefill step 0, layer 0: has 5 rows for 6 tokens"):
        execute("resident", Policy(batch=1, microbatch=1), workload((6,), 2), replay_routing=index)
    with pytest.raises(TaskFailed, match="routing trace: decode step 4, layer 0: lacks one of the requests"):
        execute("resident", Policy(batch=4, microbatch=2), workload((5, 9, 3, 8), 6), replay_routing=index)
