"""The runtime of the executor: scheduler commands on the wall clock, one thread a lane server."""

from exec.runtime.engine import ThreadEngine
from exec.runtime.errors import Fault, HazardError, Interrupted, RuntimeStuck, TaskFailed
from exec.runtime.records import Interrupt, Record
from exec.runtime.servers import Backend

__all__ = ["Backend", "Fault", "HazardError", "Interrupt", "Interrupted", "Record", "RuntimeStuck", "TaskFailed", "ThreadEngine"]
