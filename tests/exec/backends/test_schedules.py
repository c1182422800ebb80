"""Every schedule computes what the plain decoder computes."""

from __future__ import annotations

import pytest

from sim.schedulers.policy import Policy
from tests.exec.backends.support import SCHEDULERS, assert_equals_plain, execute, workload

SHAPES = {
    "one micro-batch": (Policy(batch=3, microbatch=3), workload((5, 1, 9), 4)),
    "unequal prompts": (Policy(batch=6, microbatch=2), workload((5, 17, 3, 8, 1, 12), 5)),
    "last one smaller": (Policy(batch=7, microbatch=3), workload((4, 6, 2, 9, 11, 3, 7), 4)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_tokens_and_logits_are_the_plain_decoders(scheduler, shape):
    policy, work = SHAPES[shape]
    outcome = execute(scheduler, policy, work, keep_logits=True, poison=True)
    assert_equals_plain(outcome, work)
