"""Every scheduler, unchanged, on streams: the plain decoder's tokens, however late each piece of work runs."""

from __future__ import annotations

import pytest

from exec.backends.cuda.standin import StandIn
from sim.schedulers.policy import Policy
from tests.exec.backends.support import SCHEDULERS, assert_equals_plain, execute, workload

POLICY = Policy(batch=6, microbatch=2)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("known", [True, False], ids=["whole batch", "pass by pass"])
def test_any_schedule_gives_the_plain_decoders_tokens(scheduler: str, known: bool) -> None:
    work = workload([5, 9, 3, 7, 4, 6], [4, 4, 4, 4, 4, 4] if known else [4, 2, 5, 3, 4, 1], known=known)
    done = execute(scheduler, POLICY, work, keep_logits=True, poison=True, device=StandIn(delay_s=5e-4, seed=1))
    assert_equals_plain(done, work)


def test_graphs_replay_what_repeats() -> None:
    """What was captured runs with the tensors of then: only the numbers differ from step to step."""
    work = workload([5, 9, 3, 7, 4, 6], 6)
    device = StandIn(delay_s=2e-4)
    done = execute("resident", POLICY, work, keep_logits=True, device=device, graphs=True)
    assert_equals_plain(done, work)
    # Of embed, pre_attn and attn_decode of 3 layers and 3 micro-batches, in 5 decode steps: one runs, four replay.
    assert device.captured > 0
    assert device.replayed >= 3 * device.captured


WAITS = {
    "dependencies": "exec.backends.cuda.ends.Ends.of",
    "pool units": "exec.backends.cuda.ends.StreamPools.waits",
    "memory": "exec.backends.cuda.memory.StreamArena._claim",
}


@pytest.mark.parametrize("what", WAITS)
def test_a_missing_wait_shows(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one kind of wait, a run on a late device goes wrong: so these tests would see it."""
    monkeypatch.setattr(WAITS[what], lambda *_: [])
    wrong = 0
    for seed in range(3):
        work = workload([5, 9, 3, 7, 4, 6], 4)
        try:
            done = execute("cgopipe", POLICY, work, keep_logits=True, poison=True, device=StandIn(delay_s=2e-3, seed=seed))
            assert_equals_plain(done, work)
        except Exception:
            wrong += 1
    assert wrong
