"""The op table of a machine, looked up by lane and op."""

from __future__ import annotations

from sim.errors import UserError
from sim.machines.parts import Lane, OpRate
from sim.machines.schema import Machine
from sim.tasks import Work


class OpTable:
    """Rows of a machine's op table by lane and op; the closest wins.

    Sought in this order: the lane's own name before its families, there the ops as they are given, the element
    type before any.
    """

    def __init__(self, machine: Machine, dtype: str = "bf16") -> None:
        self.machine = machine
        self._rows: dict[tuple[str, str], OpRate] = {}
        for wanted in ("*", dtype):
            self._rows |= {(row.lane, row.op): row for row in machine.ops if row.dtype == wanted}
        self._variants = {(lane, op.partition(".")[2]) for lane, op in self._rows if not op.startswith("task.")}

    def find(self, lane: Lane, *ops: str) -> OpRate | None:
        """The closest row for one of these ops."""
        for name in (lane.name, *lane.families):
            for op in ops:
                if (name, op) in self._rows:
                    return self._rows[name, op]
        return None

    def rate(self, lane: Lane, op: str) -> OpRate:
        """The row for this op, or for all. Raises UserError where the table has none."""
        return self._found(self.find(lane, op, "*"), lane, op)

    def row(self, lane: Lane, work: Work) -> OpRate:
        """As `rate`, of `op.variant` before `op`."""
        ops = (f"{work.op}.{work.variant}", work.op, "*") if work.variant else (work.op, "*")
        return self._found(self.find(lane, *ops), lane, work.op)

    def has_variant(self, lane: Lane, variant: str) -> bool:
        """Whether any op has a row of this variant on the lane; "": one without."""
        return any((name, variant) in self._variants for name in (lane.name, *lane.families))

    def _found(self, rate: OpRate | None, lane: Lane, op: str) -> OpRate:
        if rate is None:
            raise UserError(f"machine {self.machine.name}: ops has no row for {op!r} on lane {lane.name!r}; add one, or one for '*'")
        return rate
