"""`bench`: tasks per second of both engines."""

from __future__ import annotations

from sim.cli import output


def bench(as_json: bool) -> None:
    with output.progress("loading") as say:
        from sim.benchmark import bench as measure

        found = measure(say)
    if as_json:
        output.print_json(found)
        return
    rows = [
        ("compiled", f"{found['compiled_tasks_per_s']:,.0f} tasks/s"), ("SimPy", f"{found['simpy_tasks_per_s']:,.0f} tasks/s"),
        ("ratio", f"{found['ratio']:.0f}"), ("tasks", f"{found['tasks']:,}"),
        ("Plan and run", f"{found['bytes_per_task']:.0f} bytes a task"),
        ("same picoseconds", "yes" if found["same_times"] else "NO"),
    ]  # fmt: skip
    output.print_table("cgopipe, mixtral-8x7b on l4, batch 1020, micro-batch 68", ("", "value"), rows)
