"""`check`: the conformance battery on anyone's scheduler."""

from __future__ import annotations

from sim.cli import output
from traces.entry import DONE, RUN_FAILED


def check(name: str, as_json: bool) -> int:
    """Exit code: 0 where every rule passed, 1 where one was violated."""
    from sim.schedulers import registry
    from sim.testing.battery import check as battery

    scheduler = registry.load(name, "scheduler")
    with output.progress(f"checking {name}"):
        verdicts = battery(scheduler)
    passed = all(v.passed for v in verdicts)
    if as_json:
        output.print_json({"scheduler": name, "passed": passed, "rules": [v._asdict() for v in verdicts]})
    else:
        rows = [(v.name, "passed" if v.passed else "VIOLATED", v.story) for v in verdicts]
        output.print_table(f"{name}: {'conforms' if passed else 'does not conform'}", ("rule", "verdict", "first violation"), rows)
    return DONE if passed else RUN_FAILED
