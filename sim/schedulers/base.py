"""What all schedulers share: batches, passes, reaction to what ended or failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

from sim.errors import UserError
from sim.events import Arrived, Event, Failed, Finished, Request
from sim.models.spec import ModelSpec
from sim.plan import Plan
from sim.schedulers import memory, prefill, weights
from sim.schedulers.launch import At, Launcher
from sim.schedulers.passes import Pass, Rows, advance, steady_from
from sim.schedulers.policy import Policy
from sim.schedulers.sequences import Sequences
from sim.schedulers.sizes import sizes
from sim.tasks import Command, Time


class Scheduler:
    """Serves batches of requests by passes: a prefill, then a decode step for each further token.

    A subclass is a launch order: it states what it needs and launches one decode pass. A batch
    whose sequences all generate the same known number of tokens is handed out as one Plan; else
    each pass is a Plan, samplings report which sequences ended, and waiting requests take their
    places. A pass in which something failed is launched once more for the micro-batches that did
    not sample (every buffer is written by position, so that is safe once all else was cancelled); a
    second failure, or one in a batch that was handed out whole, stops the schedule.

    Attributes
    ----------
    lanes: lanes that it needs. streams: whether experts come from the host. kv: where the cache lives.
    attention: where decode attention may run; the first is the default. layer_copy: variant of the
    copies of whole layers. expert_kernel: variant of post_attn. ahead: whether a pass streams layer 0
    for the next one. experts_at_once: whether a layer's intermediates are those of all its experts.
    fused: whether tasks have bodies, so that a machine to look into them needs a lane of blocks.
    """

    lanes: ClassVar[tuple[str, ...]] = ("gpu",)
    attention: ClassVar[tuple[Literal["cpu", "gpu"], ...]] = ("gpu",)
    streams: ClassVar[bool] = True
    kv: ClassVar[Literal["cpu", "gpu"]] = "cpu"
    layer_copy: ClassVar[str] = ""
    expert_kernel: ClassVar[str] = ""
    ahead: ClassVar[bool] = True
    experts_at_once: ClassVar[bool] = True
    fused: ClassVar[bool] = False

    def __init__(self, model: ModelSpec, policy: Policy, *, seed: int = 0) -> None:
        """Raises UserError for a policy that this scheduler cannot follow."""
        where = policy.attention or self.attention[0]
        if where not in self.attention:
            name = type(self).__name__
            raise UserError(f"policy.attention: is {where!r}; {name} computes decode attention on the {self.attention[0]} only")
        if policy.static_experts > model.experts:
            raise UserError(f"policy.static_experts: is {policy.static_experts}; {model.name} has {model.experts} experts a layer")
        self.model = model
        self.policy = policy if self.streams else policy.model_copy(update={"static_experts": model.experts})
        self.seed = seed
        self.attention_on = where
        self.sizes = sizes(model, self.policy)
        self.pools: Mapping[str, int] = {**self.own_pools(), **weights.pools(self.sizes, self.stages)}
        self._launch = Launcher()
        self._sequences = Sequences(self.policy)
        self._index = self._step = self._attempt = 0
        """Passes handed out; decode steps of this batch; earlier attempts at the pass in flight."""
        self._phase: Literal["prefill", "decode"] = "prefill"
        self._warm = False
        """Whether the last pass streamed layer 0 for the next."""
        self._since = self._before = 0
        """First task of the Plan in flight, and of the one before it."""
        self._void = 0
        """Every task below it was given up or has ended: its failure is no news."""
        self._open: dict[int, Rows] = {}
        """Samplings of the pass in flight that have not reported."""
        self._lost: list[Rows] = []
        """Micro-batches that the pass in flight failed to sample."""
        self._whole = False
        """Whether the batch in flight was handed out as one Plan."""
        self._stopped = False

    # What a subclass says -----------------------------------------------------------------------

    def decode(self, p: Pass) -> None:
        """Launch one decode step."""
        raise NotImplementedError(f"{type(self).__name__}.decode")

    def prefill(self, p: Pass) -> None:
        """Launch the prefill of the rows of `p`."""
        prefill.zigzag(p)

    def own_pools(self) -> dict[str, int]:
        """Pools beyond those of the weight stream."""
        return dict(prefill.POOLS)

    @property
    def stages(self) -> bool:
        """Whether weights pass through pinned slots."""
        return "pin" in self.lanes and self.attention_on == "cpu"

    def body(self, tokens: int) -> Plan | None:
        """What happens inside post_attn of a routed layer over `tokens` rows; None: nothing that one could look at."""
        return None

    def memory(self, requests: Sequence[Request]) -> dict[str, dict[str, int]]:
        """Peak bytes of each consumer, by memory."""
        return memory.peak(self, requests)

    # Events -------------------------------------------------------------------------------------

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if self._stopped:
            return ()
        if isinstance(event, Arrived):
            self._sequences.arrive(event.request, event.last)
            return self._go_on() if self._idle else ()
        if isinstance(event, Finished) and event.task in self._open:
            return self._sampled(event)
        if isinstance(event, Failed):
            return self._failed(event)
        return ()

    @property
    def _idle(self) -> bool:
        return not self._open and self._sequences.live == 0

    def _sampled(self, event: Finished) -> Sequence[Command]:
        rows = self._open.pop(event.task)
        if not self._whole:
            self._sequences.sampled(rows, event.result.ended)
        return () if self._open else self._pass_over()

    def _failed(self, event: Failed) -> Sequence[Command]:
        commands: list[Command] = []
        if event.task >= self._void:
            self._void = self._since = self._launch.next
            commands += self._launch.give_up(self._before, f"task {event.task} failed")
            self._warm = False
            self._stopped = self._whole or self._attempt > 0
        if event.task in self._open:
            self._lost.append(self._open.pop(event.task))
            if not self._open and not self._stopped:
                commands += self._pass_over()
        return commands

    def _pass_over(self) -> Sequence[Command]:
        """Every sampling of the pass has reported."""
        if self._whole:
            self._whole = False
            self._sequences.clear()
        if not self._lost:
            self._attempt = 0
            return self._go_on()
        lost, self._lost = self._lost, []
        self._attempt += 1
        return [self._one_pass(lost)]

    # Passes -------------------------------------------------------------------------------------

    def _go_on(self) -> Sequence[Command]:
        """The next pass, or nothing while there is nobody to serve."""
        s = self._sequences
        if s.may_admit:
            fresh = s.live == 0
            s.admit()
            if fresh:
                self._step = 0
                length = s.common_length()
                if length is not None:
                    return [self._whole_batch(length)]
        if s.live == 0:
            return ()
        prompts = s.prefill_rows()
        self._phase = "prefill" if prompts else "decode"
        self._step += not prompts
        return [self._one_pass(prompts or s.decode_rows())]

    def _one_pass(self, rows: Sequence[Rows]) -> Plan:
        more = self._sequences.more_may_come or not self._sequences.all_end_next()
        p = self._run(At(self._phase, self._step, self._attempt), rows, self._index, more, notify=True)
        self._index += 1
        self._open = dict(p.samples)
        return self._hand_out()

    def _whole_batch(self, length: int) -> Plan:
        """Prefill and all decode steps of the batch; the last samplings report where others wait."""
        s = self._sequences
        prompts, decode = s.prefill_rows(), s.decode_rows()
        last, others = length - 1, s.more_may_come

        def launch(step: int) -> None:
            rows = [_later(r, step) for r in decode] if step else prompts
            at = At("decode" if step else "prefill", step)
            p = self._run(at, rows, self._index + step, others or step < last, notify=others and step == last)
            self._open = dict(p.samples) if p.notify else {}

        launch(0)
        if last > 0:
            period = 1 + (self.sizes.layers - self.sizes.dense_layers) % 2
            steady = min(last, steady_from(self.sizes, decode))
            for step in range(1, steady):
                launch(step)
            self._launch.steps(launch, steady, last - 1, period, partial(advance, self.sizes))
            launch(last)
        self._whole = True
        self._index += length
        return self._hand_out()

    def _run(self, at: At, rows: Sequence[Rows], index: int, more: bool, notify: bool) -> Pass:
        """Launch a pass; `index`: passes before it; `more`: whether another may follow."""
        warms = more and self.ahead
        stream = weights.Weights(self._launch, self.sizes, index, warms, at, self.layer_copy)
        p = Pass(self._launch, self.sizes, stream, at, rows, notify, self.expert_kernel, self.body)
        if not self._warm:
            stream.layer_to_gpu(0, after=self._launch.give_back(weights.TURN))
        (self.decode if at.phase == "decode" else self.prefill)(p)
        self._warm = warms
        return p

    def _hand_out(self) -> Plan:
        plan = self._launch.build()
        self._before, self._since = self._since, plan.first
        return plan


def _later(rows: Rows, step: int) -> Rows:
    """Decode rows of sequences that have sampled `step` tokens, from those of ones that have sampled none."""
    return rows._replace(lengths=tuple(n + step for n in rows.lengths))
