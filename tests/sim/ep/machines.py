"""A machine of two ranks with round figures, for tests."""

from __future__ import annotations

from sim.machines.parts import OpRate
from sim.machines.schema import Machine
from sim.machines.topology import Topology

SOURCE = "guessed: round figures for tests"


def two_ranks(**rates: float) -> Machine:
    """100 TFLOP/s of bf16 (50 of tf32), 1 TB/s of HBM, 10 SMs, 100 GB/s each way by NVLink, 1 us."""
    topology = Topology.model_validate({
        "gpus": 2,
        "gpu": {"peaks": {"bf16": 100e12, "tf32": 50e12}, "hbm_bytes_per_s": 1e12, "memory_bytes": 10**10, "sms": 10, "source": SOURCE},
        "links": [{"ends": ["gpu*", "switch"], "kind": "nvlink", "bytes_per_s": 100e9, "latency_s": 0.5e-6, "source": SOURCE}],
        "ops": [row.model_dump() for row in (
            OpRate(op="*", lane="gpu", latency_s=1e-6, flops_efficiency=0.5, bytes_efficiency=0.5, source=SOURCE),
            OpRate(op="*", lane="comm", latency_s=1e-6, source=SOURCE), OpRate(op="*", lane="host", latency_s=1e-6, source=SOURCE),
            OpRate(op="*", lane="put", bytes_efficiency=0.5, source=SOURCE),
        )],
    })  # fmt: skip
    return Machine(name="two", resources={}, memories={}, lanes=(), ops=(), topology=topology)
