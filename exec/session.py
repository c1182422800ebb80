"""A session: one run of one scheduler on this computer, from weights and prompts to tokens and stamps."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from exec.backends.cpu import CpuBackend, Needed
from exec.backends.warmup import warm_up_fused
from exec.runtime import ThreadEngine
from exec.weights import Weights
from sim.body import LANE, with_blocks
from sim.costs import CostModel
from sim.drive import Log, Scheduler, drive
from sim.engines.run import Run
from sim.errors import UserError
from sim.events import Profile, Request
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.schedulers.memory import refuse_if_too_big
from traces.files import Provenance
from traces.routing import Routing, RoutingIndex

if TYPE_CHECKING:
    from exec.backends.cuda.backend import CudaBackend
    from exec.backends.cuda.device import Device

Clock = Literal["emulated", "measured"]


class Serves(Scheduler, Protocol):
    """A scheduler as the command line makes it."""

    lanes: tuple[str, ...]
    pools: Any
    fused: bool

    def memory(self, requests: Sequence[Request]) -> Needed: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave.

    Attributes
    ----------
    clock: "emulated" where a link that the scheduler uses is paced, else "measured".
    run: stamps of all tasks and what was handed out, as an engine of the simulator returns them.
    tokens: generated tokens by request. logits: of each sampling [tokens, vocab], by request, where asked for.
    routing: what the routers chose, where recorded.
    clock_offsets: by lane whose kernels stamp what runs inside tasks with a clock of their own: `offset_us` from the host's,
    to within `uncertainty_us`, and `moved_us` by which they moved apart. Empty where there is none.
    peak_bytes: most bytes held at a time, by memory, as measured; planned_bytes: what the scheduler said.
    wall_s: seconds of the run proper, without placing weights and warming up.
    """

    clock: Clock
    run: Run
    tokens: dict[int, list[int]]
    logits: dict[int, NDArray[np.float32]]
    routing: Routing | None
    peak_bytes: dict[str, int]
    planned_bytes: dict[str, int]
    wall_s: float
    clock_offsets: dict[str, dict[str, float]] = field(default_factory=dict)


def run(
    model: ModelSpec, weights: Weights, machine: Machine, scheduler: Serves, requests: Sequence[Request],
    prompts: Sequence[Sequence[int]], *, lengths: Sequence[int] | None = None, eos: Collection[int] = (), profile: Profile | None = None,
    record_routing: bool = False, replay_routing: RoutingIndex | None = None, keep_logits: bool = False, poison: bool = False,
    log: Log | None = None, device: Device | None = None, graphs: bool = False,
) -> Outcome:  # fmt: skip
    """Serve `requests`, whose `prompts` are token ids, as `scheduler` says.

    lengths: tokens that each request really generates (default: what it states); eos: token ids
    that end a sequence. profile: what the scheduler sees of the machine (default: its cost model).
    device: whose streams play the lanes (None: this computer's threads do); graphs: whether tasks that
    repeat are replayed there as graphs. The other options are those of `CpuBackend`.

    Raises UserError for bad input (a budget that is too small, a lane that is missing), TaskFailed
    where an op raised, Deadlock where the schedule cannot go on.
    """
    with opened(
        model, weights, machine, scheduler, requests, prompts, lengths=lengths, eos=eos, profile=profile, record_routing=record_routing,
        replay_routing=replay_routing, keep_logits=keep_logits, poison=poison, device=device, graphs=graphs,
    ) as session:  # fmt: skip
        began = time.perf_counter()
        drive(scheduler, session.engine, log)
        wall_s = time.perf_counter() - began
    return session.outcome(_provenance(model, scheduler, session.clock), wall_s)


@dataclass(frozen=True, slots=True)
class Session:
    """Weights placed, lanes started and warm: ready to be driven. needed: as the scheduler's `memory` said."""

    model: ModelSpec
    engine: ThreadEngine
    backend: CpuBackend | CudaBackend
    needed: Needed
    clock: Clock

    def outcome(self, routing: Provenance, wall_s: float) -> Outcome:
        """What a session that has ended gave. routing: where the trace of its routers came from."""
        backend = self.backend
        return Outcome(
            clock=self.clock,
            run=self.engine.run(),
            tokens=backend.sequences.outputs(),
            logits={r: np.stack(rows) for r, rows in (backend.logits or {}).items() if rows},
            routing=backend.recorder.trace(self.model, routing) if backend.recorder is not None else None,
            peak_bytes=backend.peak_bytes(),
            planned_bytes={name: sum(consumers.values()) for name, consumers in self.needed.items()},
            wall_s=wall_s,
            clock_offsets=backend.clock_offsets(),
        )


@contextmanager
def opened(
    model: ModelSpec, weights: Weights, machine: Machine, scheduler: Serves, requests: Sequence[Request],
    prompts: Sequence[Sequence[int]], *, profile: Profile | None = None, device: Device | None = None, graphs: bool = False,
    **options: Any,
) -> Iterator[Session]:  # fmt: skip
    """A session for as long as the context lasts; parameters and errors as in `run`."""
    needed = scheduler.memory(requests)
    refuse_if_too_big({name: dict(consumers) for name, consumers in needed.items()}, machine.memories)
    for lane in scheduler.lanes:
        _check_lane(machine, lane)
    backend, engine_class = _backend(device, graphs)(model, weights, machine, needed, requests, prompts, **options)
    if scheduler.fused:
        machine = with_blocks(machine)
        _check_blocks(machine, device)
    seen = profile if profile is not None else CostModel(machine, model)
    paced = any(machine.lane[n].paced_bytes_per_s for n in scheduler.lanes)
    with engine_class(machine, backend, seen, requests, scheduler.pools) as engine:
        if scheduler.fused:
            warm_up_fused() if device is None else backend.warm_up_fused()
        yield Session(model, engine, backend, needed, "emulated" if paced else "measured")


def _backend(device: Device | None, graphs: bool) -> Callable[..., tuple[Any, type[ThreadEngine]]]:
    """What makes (backend, class of its engine): the CPU's, or that of a device with streams."""
    if device is None:
        return lambda *args, **options: (CpuBackend(*args, **options), ThreadEngine)
    from exec.backends.cuda.backend import CudaBackend
    from exec.backends.cuda.engine import StreamEngine

    return lambda *args, **options: (CudaBackend(*args, device=device, graphs=graphs, **options), StreamEngine)


def _check_blocks(machine: Machine, device: Device | None) -> None:
    """Tiles are cut for the blocks that the machine names; on a device of other blocks they do not fit the kernel."""
    named, there = machine.lane[LANE].servers, device.blocks() if device is not None else None
    if there is not None and named != there:
        raise UserError(
            f"machine {machine.name}: its lane 'gpu' stands for {named} blocks of a kernel, the device runs {there} at once; "
            "run: python -m exec calibrate --device cuda -o PROFILE.yaml"
        )


def _check_lane(machine: Machine, name: str) -> None:
    lane = machine.lane.get(name)
    if lane is None:
        raise UserError(f"machine {machine.name}: no lane {name!r} that the scheduler needs; it has {', '.join(machine.lane)}")
    if lane.servers != 1:
        raise UserError(f"machine {machine.name}: lane {name!r} has {lane.servers} servers; the executor's ops run one at a time on a lane")


def _provenance(model: ModelSpec, scheduler: Serves, clock: Clock) -> Provenance:
    return Provenance("recorded", f"routers of {model.name} under {type(scheduler).__name__}, run on this computer", clock)
