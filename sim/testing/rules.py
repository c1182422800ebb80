"""What must hold of any run, as functions from a run to the story of its first violation ("" where
there is none)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from sim.tasks import Task
from sim.testing.observed import Observed, Ran


def told(task: Task) -> str:
    """A task in words."""
    labels = {"step": task.step, "layer": task.layer, "micro-batch": task.microbatch, "page": task.page}
    places = [f"{what} {n}" for what, n in labels.items() if n >= 0]
    return f"task {task.number} {task.op} ({', '.join([task.phase, *places]) if task.phase else ', '.join(places) or 'no labels'})"


def dependencies(o: Observed) -> str:
    """What a task waits for was handed out before it, and is done when it starts."""
    by_number = {r.task.number: r for r in o.ran}
    for r in o.done:
        for d in r.task.deps:
            if d not in by_number or d >= r.task.number:
                return f"{told(r.task)} waits for task {d}, which was not handed out before it"
            if by_number[d].status != "done" or by_number[d].end > r.start:
                return f"{told(r.task)} started at {r.start}, but {told(by_number[d].task)} was not done"
    return ""


def lanes(o: Observed) -> str:
    """Tasks queue on declared lanes only, and each lane runs them one after the other, as submitted."""
    last: dict[str, Ran] = {}
    for r in o.done:
        lane = r.task.lane
        if lane is None:
            continue
        if lane not in o.scheduler.lanes:
            return f"{told(r.task)} queues on lane {lane!r}; the scheduler declares {', '.join(o.scheduler.lanes)}"
        if lane in last and last[lane].end > r.start:
            return f"lane {lane!r}: {told(r.task)} started at {r.start} before {told(last[lane].task)} ended at {last[lane].end}"
        last[lane] = r
    return ""


def pools(o: Observed) -> str:
    """Units held never exceed a pool, and all come back but those of the pass that never came."""
    released = {n: r.end for r in reversed(o.ran) for n in r.task.releases}
    steps: dict[str, list[tuple[int, int, Ran]]] = defaultdict(list)
    for r in o.done:
        for pool, units in r.task.takes:
            if pool not in o.scheduler.pools:
                return f"{told(r.task)} takes from pool {pool!r}, which the scheduler does not declare"
            steps[pool].append((r.start, units, r))
            if r.task.number in released:
                steps[pool].append((max(released[r.task.number], r.end), -units, r))
    for pool, changes in steps.items():
        held = 0
        for at, units, r in sorted(changes, key=lambda c: (c[0], c[1])):
            held += units
            if held > o.scheduler.pools[pool]:
                return f"pool {pool!r}: {held} of {o.scheduler.pools[pool]} units are held at {at}, when {told(r.task)} starts"
        if 2 * held > o.scheduler.pools[pool]:
            return f"pool {pool!r}: {held} of {o.scheduler.pools[pool]} units were never given back"
    return ""


def _accesses(ran: Iterable[Ran]) -> dict[str, list[tuple[Ran, bool]]]:
    """(task, does it write) of each buffer, in order of submission."""
    found: dict[str, list[tuple[Ran, bool]]] = defaultdict(list)
    for r in ran:
        for b in sorted({*r.task.reads, *r.task.writes}):
            found[b].append((r, b in r.task.writes))
    return found


def _overlaps(o: Observed, earlier_writes: bool, later_writes: bool) -> str:
    """The first pair of accesses to one buffer, of the kinds asked for, that ran out of order or at once."""
    for b, accesses in _accesses(o.done).items():
        latest: Ran | None = None
        for r, writes in accesses:
            reads = b in r.task.reads
            asked = writes if later_writes else reads
            if asked and latest is not None and latest.end > r.start:
                did, does = ("wrote" if earlier_writes else "read"), ("writes" if later_writes else "reads")
                return f"buffer {b}: {told(r.task)} {does} it from {r.start}; {told(latest.task)} {did} it until {latest.end}"
            touched = writes if earlier_writes else reads
            if touched and (latest is None or r.end > latest.end):
                latest = r
    return ""


def read_after_write(o: Observed) -> str:
    """What is read was written, and its writing is over; caches and what the host holds may start empty."""
    for b, accesses in _accesses(o.done).items():
        first, writes = accesses[0]
        if not writes or (b in first.task.reads and not b.startswith("kv_")):
            return f"buffer {b}: {told(first.task)} reads it, and nobody wrote it"
    return _overlaps(o, earlier_writes=True, later_writes=False)


def write_after_read(o: Observed) -> str:
    """Nothing is overwritten while it is still being read."""
    return _overlaps(o, earlier_writes=False, later_writes=True)


def write_after_write(o: Observed) -> str:
    """Writes of one buffer come one after the other, in order of submission."""
    return _overlaps(o, earlier_writes=True, later_writes=True)


def _chain(o: Observed) -> Iterator[tuple[int, int, list[Ran]]]:
    """(request, which token, tasks in order of start) of the compute that made each token."""
    compute = {"embed", "pre_attn", "attn_prefill", "attn_decode", "post_attn", "sample"}
    found: dict[tuple[int, int], list[Ran]] = defaultdict(list)
    place: Counter[int] = Counter()
    for r in o.done:
        if r.task.op in compute:
            for q in r.task.requests:
                found[q, place[q]].append(r)
                place[q] += r.task.op == "sample"
    yield from ((q, n, chain) for (q, n), chain in found.items())


def tokens_once(o: Observed) -> str:
    """Each request gets as many tokens as it generates; each token goes through embed, then pre_attn,
    attention, post_attn of every layer in turn, then sample, exactly once, with the right sizes."""
    sampled = Counter(q for r in o.done if r.task.op == "sample" for q in r.task.requests)
    for request in o.case.requests:
        q = request.request_id
        if sampled[q] != o.case.lengths[q]:
            return f"request {q} got {sampled[q]} tokens, not {o.case.lengths[q]}"
    for q, n, chain in _chain(o):
        story = _one_token(o, chain)
        if story:
            return f"request {q}, token {n}: {story}"
    return _contexts(o)


def _one_token(o: Observed, chain: list[Ran]) -> str:
    attention = "attn_decode" if chain[0].task.phase == "decode" else "attn_prefill"
    layers = [(op, i) for i in range(o.case.model.layers) for op in ("pre_attn", attention, "post_attn")]
    expected = [("embed", -1), *layers, ("sample", -1)]
    found = [(r.task.op, r.task.layer) for r in chain]
    if found != expected:
        at = next((k for k, (f, e) in enumerate(zip(found, expected, strict=False)) if f != e), min(len(found), len(expected)))
        return f"step {at} should be {expected[at : at + 1]}, is {found[at : at + 1]}"
    for a, b in zip(chain, chain[1:], strict=False):
        if a.end > b.start:
            return f"{told(b.task)} started at {b.start}, before {told(a.task)} ended at {a.end}"
    return ""


def _contexts(o: Observed) -> str:
    """`tokens`, `sequences`, `context` and `experts` of the work are those of the sequences."""
    prompt = {r.request_id: r.prompt_tokens for r in o.case.requests}
    longest = max(prompt.values())
    seen = o.case.model.kv_entries
    had: Counter[int] = Counter()
    for r in o.done:
        w, requests = r.task.work, r.task.requests
        if o.case.policy.padded and r.task.op == "embed" and r.task.phase == "prefill":
            rows = w.tokens // len(requests)
            if not max(prompt[q] for q in requests) <= rows <= longest:
                return f"{told(r.task)} pads prompts to {rows} rows; the longest has {longest}"
            prompt.update(dict.fromkeys(requests, rows))
        if r.task.op == "attn_prefill":
            right = sum(seen(r.task.layer, t) for q in requests for t in range(1, prompt[q] + 1))
            if (w.tokens, w.context) != (sum(prompt[q] for q in requests), right):
                return f"{told(r.task)} has tokens {w.tokens} and context {w.context}; context should be {right}"
        if r.task.op == "attn_decode":
            right = sum(seen(r.task.layer, prompt[q] + had[q]) for q in requests)
            if (w.tokens, w.context) != (len(requests), right):
                return f"{told(r.task)} has tokens {w.tokens} and context {w.context}; it reads {right} entries"
        if r.task.op == "post_attn" and w.experts != (o.case.model.experts if r.task.layer >= o.case.model.dense_layers else 0):
            return f"{told(r.task)} has {w.experts} experts"
        if r.task.op == "sample":
            had.update(requests)
    return ""


def bytes_moved(o: Observed) -> str:
    """A copy of activations or cache entries moves the bytes of its rows, no more and no fewer."""
    m = o.case.model
    row = {
        "offload_qkv": m.qkv_dim, "load_hidden": m.attention_out_dim, "hidden_to_cpu": m.hidden, "hidden_to_gpu": m.hidden,
        "kv_to_cpu": m.kv_dim, "kv_to_gpu": m.kv_dim,
    }  # fmt: skip
    for r in o.done:
        w = r.task.work
        if w.op in row:
            rows = w.context if w.op == "kv_to_gpu" else w.tokens
            if w.op == "kv_to_cpu" and r.task.layer in m.sliding_layers and w.bytes < rows * row[w.op] * m.dtype_bytes:
                continue  # of a prompt longer than the window only the end is kept
            if w.bytes != rows * row[w.op] * m.dtype_bytes:
                return f"{told(r.task)} moves {w.bytes} bytes, {rows} rows of {row[w.op]} values have {rows * row[w.op] * m.dtype_bytes}"
    return ""


def weights_present(o: Observed) -> str:
    """Every post_attn finds all streamed experts of its own layer, and nothing else, in the pages that it
    reads; each page came from a pinned slot that held the same page."""
    model = o.case.model
    resident = o.scheduler.memory(o.case.requests)["gpu"]["weights"] >= model.weight_bytes
    streamed = 0 if resident else o.case.policy.streamed_experts(model) * model.expert_bytes
    content: dict[str, Ran] = {}
    for r in o.done:
        t = r.task
        if t.op == "page_to_gpu" and any(not _same_page(content.get(b), t) for b in t.reads):
            return f"{told(t)} reads {', '.join(t.reads)}, which holds another page"
        if t.op == "post_attn":
            copies = {c.task.number: c for b in t.reads if b.startswith("w.") for c in [content.get(b)] if c is not None}
            late = [c for c in copies.values() if c.task.layer != t.layer or c.end > r.start]
            if late:
                return f"{told(t)} starts at {r.start} and reads what {told(late[0].task)} brings until {late[0].end}"
            found, needed = sum(c.task.work.bytes for c in copies.values()), streamed if t.layer >= model.dense_layers else 0
            if found != needed:
                return f"{told(t)} finds {found} bytes of streamed experts, not {needed}"
        if t.op in ("page_to_pin", "page_to_gpu", "layer_to_gpu"):
            content.update(dict.fromkeys(t.writes, r))
    return ""


def _same_page(staged: Ran | None, task: Task) -> bool:
    return staged is not None and (staged.task.layer, staged.task.page) == (task.layer, task.page)
