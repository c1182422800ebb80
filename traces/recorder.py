"""Records the routing of a torch Mixture-of-Experts model while it runs: `with traces.record(model) as recording: ...`.

Each forward pass of the model is one step of a batch. A pass that finds an empty cache begins new requests (numbered on through
the recording); one that goes on from a cache and has one token a sequence is a decode step of the same requests; one that goes on
with more tokens before the first decode step is a further part of the prefill. Padding, by the attention mask of the prefill, is left
out, and so is what is fed to a sequence after its end token while others of the batch go on.

While the model runs its choices are kept as tensors, where they are; rows are made of them when many have come together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.files import Provenance
from traces.passes import Batch, Pass, array, places, runs
from traces.routers import Router, find_routers, replace_forward
from traces.routing_file import Routing, RoutingWriter, Shape, concatenate, writing_routing

if TYPE_CHECKING:
    from torch import Tensor, nn

FLUSH_ROWS = 1 << 16
"""Rows (tokens times layers) after which the kept tensors are made into arrays."""
PACK_TENSORS = 256
"""Kept tensors after which they are put together, on their device."""


_OUTSIDE = -1
"""Stands for the beginning of a pass where none is running; odd, so that no number of choices is as many behind it."""


class Recording:
    """What was recorded so far. `routing()` gives all of it, unless it was streamed to a file."""

    def __init__(self, routers: Sequence[Router], ends: frozenset[int], origin: str, model: str, path: Path | None) -> None:
        import torch

        self.routers, self._ends, self._model, self._path = routers, ends, model, path
        names = ",".join(r.name for r in routers)
        self._provenance = Provenance("recorded", origin, facts={"torch": torch.__version__, "routers": names})
        self.requests = 0
        self.shape: Shape | None = None
        self._passes: list[Pass] = []
        self._loose: list[Tensor] = []  # experts, weights of a layer, of the next layer, ... of the next pass
        self._packed: list[tuple[Tensor, Tensor]] = []
        self._begun: Pass
        self._mark = _OUTSIDE  # where in `_loose` the running pass begins
        self._waiting = 0
        self._parts: list[Routing] = []
        self._out: RoutingWriter | None = None
        self._files = ExitStack()

    def routing(self) -> Routing:
        """Everything recorded; raises `TraceError` where that is nothing or has gone to a file."""
        self._flush()
        if self._path is not None:
            raise TraceError(f"{self._path}: the recording was streamed to this file; read it there")
        if not self._parts:
            raise TraceError("recording: the model has not run; nothing was recorded")
        self._parts = [concatenate(self._parts)]
        return self._parts[0]

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write what is left; after an error the file does not appear."""
        try:
            if kind is None:
                self._flush()
        except BaseException as failed:
            self._files.__exit__(type(failed), failed, failed.__traceback__)
            raise
        self._files.__exit__(kind, error, trace)

    def listen(self, model: nn.Module) -> list[Callable[[], None]]:
        """Listen to the model and its routers; returns what ends it."""
        forward = model.forward

        def heard(*given: Any, **named: Any) -> Any:
            self._begin(given, named)
            result = forward(*given, **named)
            self._end()
            return result

        choices = [r.listen(self._listener(i)) for i, r in enumerate(self.routers)]
        return [*choices, replace_forward(model, heard)]

    # While the model runs --------------------------------------------------------------------

    def _listener(self, layer: int) -> Callable[[Tensor, Tensor], None]:
        """What the router of a layer tells its choice to."""
        loose, before = self._loose, 2 * layer

        def choice(experts: Tensor, weights: Tensor) -> None:
            if len(loose) != self._mark + before:
                outside = self._mark == _OUTSIDE
                seen = "outside a forward pass" if outside else f"after the choices of {(len(loose) - self._mark) // 2} layers"
                raise TraceError(f"model: {self.routers[layer].name}: routed {seen}; run the model that is being recorded, whole")
            loose.append(experts)
            loose.append(weights)

        return choice

    def _begin(self, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        fed = given[0] if given else named.get("input_ids")
        fed = named.get("inputs_embeds") if fed is None else fed
        if fed is None:
            raise TraceError("model: called without input_ids or inputs_embeds; the recorder cannot tell its tokens")
        sequences, tokens = fed.shape[:2]
        past = _cached(named.get("past_key_values"))
        if past and self._passes_on(sequences, tokens):
            self._begun = Pass(self._batch, self._batch.steps + 1, ids=fed if fed.dim() == 2 else None)
        else:
            self._begun = self._prefill(sequences, tokens, past, named.get("attention_mask"))
        self._forget()
        self._mark = len(self._loose)

    def _forget(self) -> None:
        """Drop the choices of a pass in the middle of which the model raised."""
        if self._mark != _OUTSIDE:
            del self._loose[self._mark :]
            self._mark = _OUTSIDE

    def _passes_on(self, sequences: int, tokens: int) -> bool:
        """Whether a pass that goes on from a cache is a decode step, not a further part of the prefill."""
        if not self._passes and not self.requests:
            raise TraceError("model: goes on from a cache that was filled before the recording began; begin it with the prefill")
        if len(self._batch.prompt) != sequences:
            wrong = f"model: goes on with {sequences} sequences where {len(self._batch.prompt)} were begun"
            raise TraceError(f"{wrong}; the recorder follows one batch from its prefill to its end")
        if tokens > 1 and self._batch.steps:
            fed = f"model: was fed {tokens} tokens at once after its first decode step"
            raise TraceError(f"{fed}; drafts and further turns are not recorded")
        return tokens == 1

    def _prefill(self, sequences: int, tokens: int, past: int, mask: Any) -> Pass:
        if not past:
            self._batch = Batch(self.requests, np.zeros(sequences, np.int64), np.zeros(sequences, np.bool_))
        live = np.ones((sequences, tokens), np.bool_)
        if mask is not None and mask.dim() == 2:
            live = mask[:, -tokens:].detach().cpu().numpy().astype(np.bool_)
        return Pass(self._batch, 0, live, self._batch.prompt[:, None] + live.cumsum(axis=1) - 1)

    def _end(self) -> None:
        """Keep the pass; one in the middle of which the model raised does not come here."""
        layers, done = (len(self._loose) - self._mark) // 2, self._begun
        if layers != len(self.routers):
            raise TraceError(f"model: {layers} of {len(self.routers)} layers routed in a pass; the recorder needs all of them")
        self._mark, batch = _OUTSIDE, done.batch
        batch.steps = done.step
        if done.live is not None:
            batch.prompt = batch.prompt + done.live.sum(axis=1)
            self.requests = batch.first + len(batch.prompt)
        self._passes.append(done)
        self._waiting += layers * self._loose[-1].shape[0]
        if self._waiting >= FLUSH_ROWS:
            self._flush()
        elif len(self._loose) >= PACK_TENSORS:
            self._pack()

    # From tensors to rows --------------------------------------------------------------------

    def _pack(self) -> None:
        """Many small tensors become two: soon, while they are in the processor's cache and their memory can serve the next passes."""
        import torch

        loose = self._loose
        if len({t.device for t in loose[: 2 * len(self.routers)]}) > 1:  # a model spread over several accelerators
            loose = [t.cpu() for t in loose]
        if loose:
            self._packed.append((torch.cat(loose[::2]), torch.cat(loose[1::2])))
        self._loose.clear()

    def _flush(self) -> None:
        """Make the kept passes into rows; runs of like decode steps together."""
        self._forget()
        self._pack()
        done, self._passes, self._waiting = self._passes, [], 0
        packed, self._packed = self._packed, []
        if not done:
            return
        experts, weights = (np.concatenate([array(t) for t in kind]) for kind in zip(*packed, strict=True))
        at = 0
        for run in runs(done):
            rows = len(self.routers) * sum(p.tokens for p in run)
            part = self._rows(run, experts[at : at + rows], weights[at : at + rows])
            at += rows
            if self._out is not None:
                self._out.collect(part)
            elif len(part):
                self._parts.append(part)

    def _rows(self, run: list[Pass], experts: NDArray[Any], weights: NDArray[Any]) -> Routing:
        """Of experts and weights [passes x layers x tokens, k]."""
        layers, k, n = len(self.routers), experts.shape[1], run[0].tokens
        step, request, position, live = places(run, self._ends)
        each = [np.broadcast_to(a[:, None, :], (len(run), layers, n)).ravel() for a in (step, request, position, live)]
        layer = np.broadcast_to(np.arange(layers)[None, :, None], (len(run), layers, n)).ravel()
        keep = each[3].astype(np.bool_)
        shape = self._shape_of(k)
        return Routing(
            decode=each[0][keep] > 0, step=each[0][keep].astype(np.int32), request_id=each[1][keep].astype(np.int32),
            position=each[2][keep].astype(np.int32), layer=layer[keep].astype(np.int16), experts=experts[keep].astype(np.int16),
            weights=weights[keep].astype(np.float32), shape=shape, provenance=self._provenance,
        )  # fmt: skip

    def _shape_of(self, k: int) -> Shape:
        sizes = {r.experts for r in self.routers}
        if len(sizes) > 1:
            raise TraceError(f"model: its layers have {sorted(sizes)} experts; a routing trace has one number of experts")
        shape = Shape(self._model, len(self.routers), self.routers[0].experts, k)
        if self.shape not in (None, shape):
            raise TraceError(f"model: now chooses {k} experts a token after {self.shape}; a routing trace has one k")
        self.shape = shape
        if self._path is not None and self._out is None:
            self._out = self._files.enter_context(writing_routing(self._path, shape, self._provenance))
        return shape


def _cached(cache: Any) -> int:
    """Tokens in a key-value cache: an object of transformers, or nested tuples [layer][key, value] of [., ., tokens, .]."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2]) if len(cache) else 0


@contextmanager
def record(model: nn.Module, out: str | Path | None = None, *, name: str = "", ends: Sequence[int] | None = None) -> Iterator[Recording]:
    """Record every choice of the routers of `model` while the context lasts.

    Parameters
    ----------
    model: a Hugging Face causal language model, or any torch model called with `input_ids` [sequences, tokens] (first argument, or
        by name; also `inputs_embeds`) and, to go on, `past_key_values`. Its routers are found by structure, see `traces.routers`.
    out: stream the trace to this file, which appears when the context ends without an error. None: keep it in memory.
    name: of the model, for the trace; by default that of its configuration.
    ends: end tokens; by default those of the model's generation config.

    Raises `TraceError` where the model has no routers, or is used in a way that has no place in a routing trace: a cache filled before,
    a batch that changes its size, several tokens at once after the first decode step.
    """
    routers = find_routers(model)
    label = name or str(getattr(getattr(model, "config", None), "_name_or_path", "")) or type(model).__name__
    known = frozenset(_ends(model) if ends is None else ends)
    recording = Recording(routers, known, f"{type(model).__name__}, recorded while it ran", label, None if out is None else Path(out))
    with recording, ExitStack() as listening:
        for end in recording.listen(model):
            listening.callback(end)
        yield recording


def _ends(model: nn.Module) -> tuple[int, ...]:
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        found = getattr(holder, "eos_token_id", None)
        if found is not None:
            return (found,) if isinstance(found, int) else tuple(found)
    return ()
