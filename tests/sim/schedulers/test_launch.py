"""What a task waits for follows from the buffers that it touches."""

from __future__ import annotations

from sim import buffers
from sim.schedulers.launch import At, Launcher
from sim.tasks import Cancel, Work

W = Work("timer")


def deps(launch: Launcher, number: int) -> tuple[int, ...]:
    return next(t.deps for t in launch.build().tasks() if t.number == number)


def test_a_reader_waits_for_the_last_writer_on_any_lane() -> None:
    launch = Launcher()
    launch.add(W, "gpu", writes=["a"])
    launch.add(W, "gpu", writes=["a"])
    launch.add(W, "gpu", reads=["a"])
    assert [t.deps for t in launch.build().tasks()] == [(), (), (1,)]


def test_a_writer_waits_for_readers_and_writer_on_other_lanes_only() -> None:
    launch = Launcher(first=10)
    launch.add(W, "gpu", writes=["a"])
    launch.add(W, "cpu", reads=["a"])
    launch.add(W, "cpu", reads=["a"])
    launch.add(W, "h2d", reads=["a"])
    assert deps(launch, launch.add(W, "gpu", writes=["a"])) == (12, 13)


def test_a_writer_waits_for_the_writer_before_it_on_another_lane() -> None:
    launch = Launcher()
    launch.add(W, "gpu", writes=["a"])
    launch.add(W, "h2d", writes=["a"])
    launch.add(W, "gpu", writes=["a"])
    assert [t.deps for t in launch.build().tasks()] == [(), (0,), (1,)]


def test_readers_before_a_write_are_over_for_the_next() -> None:
    launch = Launcher()
    launch.add(W, "gpu", writes=["a"])
    launch.add(W, "cpu", reads=["a"])
    launch.add(W, "gpu", writes=["a"])
    assert deps(launch, launch.add(W, "cpu", writes=["a"])) == (2,)


def test_buffers_with_a_pool_wait_for_no_reader_by_name() -> None:
    launch = Launcher()
    for b in (buffers.weight(0, 1), buffers.pin(1)):
        launch.add(W, "h2d", writes=[b])
        launch.add(W, "gpu", reads=[b])
        launch.add(W, "pin", writes=[b])
    assert [t.deps for t in launch.build().tasks()] == [(), (0,), (), (), (3,), ()]


def test_a_stand_in_is_waited_for_in_place_of_the_writers() -> None:
    launch = Launcher()
    written = [launch.add(W, "h2d", writes=[b]) for b in ("a", "b")]
    assert launch.writers(["a", "b", "c"]) == written
    launch.stand_for(launch.add(Work("join"), None, after=written), ["a", "b"])
    assert deps(launch, launch.add(W, "gpu", reads=["a", "b"])) == (2,)


def test_numbers_and_buffers_go_on_from_plan_to_plan() -> None:
    launch = Launcher()
    launch.add(W, "gpu", writes=["a"], at=At("decode", 3, 1), layer=2)
    first = launch.build()
    launch.add(W, "cpu", reads=["a"])
    second = launch.build()
    assert (first.first, second.first, second.task(0).deps) == (0, 1, (0,))
    assert (first.task(0).phase, first.task(0).step, first.task(0).attempt, first.task(0).layer) == ("decode", 3, 1, 2)


def test_holds_are_kept_by_name_and_given_back_once() -> None:
    launch = Launcher()
    launch.keep("w.0", 3)
    launch.keep("w.0", 4)
    launch.keep("w.1", 5)
    assert launch.give_back("w.0") == (3, 4) and launch.give_back("w.0") == () and launch.give_back("w.1") == (5,)


def test_giving_up_cancels_what_was_handed_out_and_forgets_buffers() -> None:
    launch = Launcher()
    for _ in range(3):
        launch.add(W, "gpu", writes=["a"], takes=[("pool", 1)])
    launch.keep("hold", 2)
    launch.build()
    assert launch.give_up(1, "why") == [Cancel(1, "why"), Cancel(2, "why")]
    launch.add(W, "cpu", reads=["a"])
    plan = launch.build()
    assert (plan.task(0).work.op, plan.task(0).lane, plan.task(0).releases) == ("join", None, (1, 2))
    assert plan.task(1).deps == () and launch.give_back("hold") == ()


def test_buffer_names_parse_and_have_a_home() -> None:
    assert buffers.parse(buffers.kv_host(3, 11)) == ("kv_host", (3, 11))
    homes = {buffers.hidden(0): "gpu", buffers.pin(2): "pinned", buffers.kv_host(1, 0): "cpu", buffers.qkv_host(4): "pinned"}
    assert {b: buffers.memory(b) for b in homes} == homes
    assert buffers.half(1, 3) == ("w.1.0", "w.1.1", "w.1.2")
    made = [
        buffers.hidden(1), buffers.qkv(1), buffers.attn(1), buffers.token(1), buffers.weight(1, 2), buffers.kv_gpu(1, 2),
        buffers.kv_stage(1), buffers.routed(1), buffers.moe(1), buffers.moe_part(1), buffers.expert(1), buffers.pin(1), buffers.qkv_host(1),
        buffers.attn_host(1), buffers.routed_host(1), buffers.moe_host(1), buffers.expert_host(1), buffers.kv_host(1, 2),
        buffers.hidden_host(1),
    ]  # fmt: skip
    assert [buffers.parse(b)[0] for b in made] == list(buffers.KINDS)


def test_a_name_that_is_no_buffer_is_refused() -> None:
    for bad in ("hidden", "hidden.x", "hidden.1.2", "w.1", "nothing.1"):
        try:
            buffers.parse(bad)
        except ValueError as e:
            assert repr(bad) in str(e)
        else:
            raise AssertionError(f"{bad} was taken")
