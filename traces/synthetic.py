"""A synthetic router for what-ifs: fitted to a recorded trace, or set by knobs; reproducible by its seed.

A token's score for expert e of layer l is

    popularity[l, e] + spread[l] * topic[request, l, e] + stickiness[l] * (token before chose e)
        + sum over the experts a that the token chose in layer l - 1 of transition[l - 1, a, e] + Gumbel noise

and the k best are chosen, which draws without replacement in proportion to exp(score) (Gumbel-top-k,
Kool et al. 2019). The topic is a standard normal of each request that fades from one request to the
next with `persistence` (an AR(1) process): the drift between parts of a trace. Noise is a hash of
(seed, request, position, layer, expert): adding a request or a token moves no other draw.

The fit takes transitions and popularity from counts and then matches moments: it draws, measures
each layer's overlap, working sets, recall and load on what it drew, and corrects until they fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.describe import drift, locality, prediction
from traces.describe.tokens import Tokens, tokens_of
from traces.errors import TraceError
from traces.files import Provenance
from traces.routing_file import Routing, Shape

Floats = NDArray[np.float64]

_SMOOTHING = 4.0
"""Imagined tokens, spread by popularity, added to each row of the transition counts."""
_ROUNDS = 12
_ENOUGH = 12_000
_STRETCH = 2 * 64
"""The moments are matched on about so many tokens, so many or more of a request: many short requests tell more than few long ones."""
_LONG = (32, 64)
"""Windows whose working sets the fit of the topic's spread looks at."""


@dataclass(frozen=True, eq=False, slots=True)
class Router:
    """Parameters of the model above; logarithms throughout.

    Attributes
    ----------
    popularity [layers, experts]; transition [layers - 1, experts, experts] from the expert before to the one after.
    stickiness, spread [layers]; persistence in 0..1: as above.
    weights [k]: gate weights to write for the ranks 1..k; NaN for none.
    origin: what it was fitted to, or that it was set by knobs.
    """

    shape: Shape
    popularity: Floats
    transition: Floats
    stickiness: Floats
    spread: Floats
    persistence: float
    origin: str
    weights: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


def by_knobs(
    shape: Shape, *, skew: float = 1.0, overlap: float = 0.5, predictability: float = 1.0, topics: float = 1.0, persistence: float = 0.0,
    seed: int = 0,
) -> Router:  # fmt: skip
    """A router without a recording.

    skew: standard deviation of the log popularity, 0 for even load. overlap: stickiness, by which
    the score of an expert rises that the token before chose. predictability: scale of random
    transitions between layers. topics: how much requests differ. persistence: how much a request's
    topic lasts into the next one.
    """
    for name, value in (("skew", skew), ("predictability", predictability), ("topics", topics)):
        if not 0 <= value <= 20:
            raise TraceError(f"{name}={value}: must be 0 to 20")
    if not 0 <= persistence <= 1:
        raise TraceError(f"persistence={persistence}: must be 0 to 1")
    rng = np.random.default_rng([seed, 1])
    popularity = skew * rng.standard_normal((shape.layers, shape.experts))
    transition = predictability * rng.standard_normal((max(0, shape.layers - 1), shape.experts, shape.experts))
    told = f"skew={skew:g}, overlap={overlap:g}, predictability={predictability:g}, topics={topics:g}, persistence={persistence:g}"
    same = np.ones(shape.layers)
    return Router(shape, popularity, transition, overlap * same, topics * same, persistence, f"set by knobs: {told}, seed={seed}")


def draw(router: Router, prompts: Sequence[int], outputs: Sequence[int], *, seed: int = 0, command: str = "") -> Routing:
    """Routing of requests with these prompt lengths and these numbers of decode steps, marked synthetic.

    Rows by request, position and layer. Needs numba.
    """
    prompt, output = np.asarray(prompts, np.int64), np.asarray(outputs, np.int64)
    if prompt.shape != output.shape or prompt.ndim != 1:
        raise TraceError(f"prompts, outputs: have the shapes {prompt.shape} and {output.shape}; one of each a request is needed")
    if (prompt < 0).any() or (output < 0).any() or (prompt + output > 2**31 - 1).any():
        raise TraceError("prompts, outputs: must be 0 or more, and fit 31 bits together")
    experts = _draw(router, prompt + output, seed)
    return _routing(router, experts, prompt, output, seed, command)


def _draw(router: Router, lengths: NDArray[np.int64], seed: int) -> NDArray[np.int16]:
    topic = router.spread[:, None] * _topics(len(lengths), router.shape, router.persistence, seed)
    key = np.uint64(seed % 2**63)
    drawn = _kernel()(router.popularity, router.transition, router.stickiness, topic, lengths, router.shape.k, key)
    return np.asarray(drawn, np.int16)


def _topics(requests: int, shape: Shape, persistence: float, seed: int) -> Floats:
    """[requests, layers, experts], each request's own part from (seed, request)."""
    topics = np.empty((requests, shape.layers, shape.experts))
    before = np.zeros((shape.layers, shape.experts))
    for r in range(requests):
        own = np.random.default_rng([seed, 2, r]).standard_normal(before.shape)
        before = own if r == 0 else persistence * before + np.sqrt(1 - persistence**2) * own
        topics[r] = before
    return topics


def _routing(
    router: Router, experts: NDArray[np.int16], prompt: NDArray[np.int64], output: NDArray[np.int64], seed: int, command: str
) -> Routing:
    shape, lengths = router.shape, prompt + output
    request = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(request)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    step = np.maximum(position - prompt[request] + 1, 0) if len(request) else position
    n = len(request) * shape.layers
    ranks = router.weights if len(router.weights) else np.full(shape.k, np.nan, np.float32)
    facts = {"router": router.origin, "seed": str(seed)}
    made = {"command": command} if command else {}
    provenance = Provenance("synthetic", f"synthetic router, {router.origin}", facts=facts, **made)  # type: ignore[arg-type]
    return Routing(
        decode=np.repeat(step > 0, shape.layers), step=np.repeat(step, shape.layers).astype(np.int32),
        request_id=np.repeat(request, shape.layers).astype(np.int32), position=np.repeat(position, shape.layers).astype(np.int32),
        layer=np.tile(np.arange(shape.layers, dtype=np.int16), len(request)), experts=experts.reshape(n, shape.k),
        weights=np.broadcast_to(ranks, (n, shape.k)).astype(np.float32), shape=shape, provenance=provenance,
    )  # fmt: skip


def fit(routing: Routing, *, seed: int = 0) -> Router:
    """The router whose draws resemble a recorded trace: its load, overlap, working sets, next-layer recall and drift.

    Takes the decode tokens where there are any. Raises `TraceError` where the trace has too little to fit.
    """
    tokens = tokens_of(routing)
    tokens = tokens.take(tokens.decode) if tokens.decode.any() else tokens
    if len(tokens.layers) != routing.shape.layers:
        raise TraceError(f"routing: has rows of {len(tokens.layers)} of its {routing.shape.layers} layers; the fit needs all")
    if len(tokens) < 64:
        raise TraceError(f"routing: has {len(tokens)} whole tokens; the fit needs 64 or more")
    share = _share(tokens)
    lift = _lift(tokens, share)
    same, origin = np.ones(len(tokens.layers)), f"fitted to {routing.provenance.origin}"
    start = Router(routing.shape, _odds(share), lift, 0.5 * same, 1.3 * same, 0.2, origin, _mean_weights(routing))
    return _match(start, lift, tokens, seed)


def _share(tokens: Tokens) -> Floats:
    """Share of the tokens that each expert gets [layers, experts], half a token added so that none is 0."""
    return np.asarray((tokens.counts() + 0.5) / (len(tokens) + 1))


def _odds(share: Floats) -> Floats:
    return np.asarray(np.log(share / (1 - np.minimum(share, 1 - 1e-9))))


def _lift(tokens: Tokens, share: Floats) -> Floats:
    """ln P(e in layer l + 1 | a in layer l) / P(e) [layers - 1, experts, experts]."""
    lift = np.empty((len(tokens.layers) - 1, tokens.most, tokens.most))
    before = tokens.chosen(0).astype(np.float32)
    for layer in range(len(lift)):
        after = tokens.chosen(layer + 1).astype(np.float32)
        joint = before.T @ after + _SMOOTHING * share[layer + 1]
        given = joint / (before.sum(axis=0)[:, None] + _SMOOTHING)
        lift[layer] = np.log(given / share[layer + 1])
        before = after
    return lift


def _mean_weights(routing: Routing) -> NDArray[np.float32]:
    known = np.isfinite(routing.weights).all(axis=1)
    if not known.any():
        return np.full(routing.shape.k, np.nan, np.float32)
    return np.asarray(routing.weights[known].mean(axis=0, dtype=np.float64), np.float32)


@dataclass(frozen=True, eq=False, slots=True)
class _Moments:
    """What the fit matches, by layer: recall of the next layer [layers - 1], overlap of consecutive tokens [layers],
    working set of the longer windows [layers]; and the correlation of the load between neighbouring quarters of the trace."""

    recall: Floats
    overlap: Floats
    long: Floats
    steady: float


def _moments(tokens: Tokens) -> _Moments:
    sets = locality.working_sets_by_layer(tokens, _LONG)
    known = np.isfinite(sets).all(axis=1)
    long = np.exp(np.log(sets[known]).mean(axis=0)) if known.any() else np.full(len(tokens.layers), np.nan)
    steady = float(np.diag(drift.between(drift.in_parts(tokens)), 1).mean())
    return _Moments(prediction.next_layer_recall(tokens)[0], locality.overlap(tokens), long, steady)


def _match(router: Router, lift: Floats, tokens: Tokens, seed: int) -> Router:
    """Correct each parameter by the moment that it chiefly moves, until the moments of the draws are those of the tokens."""
    share, tokens = _share(tokens), _some(tokens)
    wanted, lengths = _moments(tokens), np.bincount(tokens.sequence()).astype(np.int64)
    strength = np.ones(len(lift))
    for _ in range(_ROUNDS):
        router = replace(router, transition=strength[:, None, None] * lift)
        drawn = tokens_like(router, lengths, seed)
        found = _moments(drawn)
        strength = np.minimum(strength * _power(wanted.recall / found.recall, 1.5), 10.0)
        router = replace(
            router,
            popularity=router.popularity + 0.7 * (_odds(share) - _odds(_share(drawn))),
            stickiness=router.stickiness + np.nan_to_num(wanted.overlap - found.overlap),
            spread=np.minimum(router.spread * _power(wanted.long / found.long, -1.5), 10.0),
            persistence=float(np.clip(router.persistence + np.nan_to_num(found.steady - wanted.steady), 0.0, 0.95)),
        )
    return replace(router, transition=strength[:, None, None] * lift)


def _some(tokens: Tokens) -> Tokens:
    """The last tokens of requests that are spread evenly over the trace, about `_ENOUGH` in all."""
    sequence = tokens.sequence()
    requests = int(sequence[-1]) + 1
    kept = np.linspace(0, requests - 1, min(requests, _ENOUGH // _STRETCH)).round().astype(int)
    left = np.cumsum(np.bincount(sequence))[sequence] - np.arange(len(sequence))
    return tokens.take(np.isin(sequence, kept) & (left <= max(_STRETCH, _ENOUGH // requests)))


def _power(ratio: Floats, exponent: float) -> Floats:
    """Correction factors, at most twofold; 1 where a moment is not defined."""
    known = np.isfinite(ratio) & (ratio > 0)
    return np.clip(np.where(known, ratio, 1.0) ** exponent, 0.5, 2.0)


def tokens_like(router: Router, lengths: NDArray[np.int64], seed: int) -> Tokens:
    """Drawn tokens of requests of these lengths, without the detour over rows."""
    request = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    position = np.arange(len(request)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    layers = np.arange(router.shape.layers, dtype=np.int16)
    decode = np.ones(len(request), np.bool_)
    return Tokens(_draw(router, lengths, seed), layers, request, position.astype(np.int32), decode, router.shape.experts)


_compiled: list[Callable[..., Any]] = []


def _kernel() -> Callable[..., Any]:
    """The sampler, compiled at the first call: numba is not imported before it is needed."""
    if not _compiled:
        from traces.sampler import sample

        _compiled.append(sample)
    return _compiled[0]
