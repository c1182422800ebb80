"""Checkpoints: whatever is saved comes back, what is shared is there once, and damage is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.swarm import checkpoints
from sim.swarm.checkpoints import Chunk, ChunkError, ChunkStore, fetch, read, restore, save

names = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3).map("/".join)


@st.composite
def items(draw: st.DrawFn) -> dict[str, bytes]:
    found = draw(st.dictionaries(names, st.binary(max_size=40), max_size=8))
    return {n: b for n, b in found.items() if not any(m != n and (m.startswith(n + "/")) for m in found)}


def walk(store: ChunkStore, root: str) -> Iterator[tuple[str, Chunk]]:
    """Every chunk of a checkpoint once, parents first."""
    seen, stack = {root}, [root]
    while stack:
        digest = stack.pop()
        chunk = read(store, digest)
        yield digest, chunk
        new = [d for _, d in reversed(chunk.below) if d not in seen]
        stack += [d for i, d in enumerate(new) if d not in new[i + 1 :]]
        seen.update(new)


@given(items(), items(), st.integers(1, 16))
@settings(max_examples=30)
def test_what_is_saved_comes_back_and_only_news_is_moved(
    tmp_path_factory: pytest.TempPathFactory, a: dict[str, bytes], b: dict[str, bytes], size: int
) -> None:
    folder = tmp_path_factory.mktemp("chunks")
    store, replacement = ChunkStore(folder / "store"), ChunkStore(folder / "node")
    first, second = save(store, a, chunk_bytes=size), save(store, b, chunk_bytes=size)
    assert dict(restore(store, first)) == a and dict(restore(store, second)) == b
    assert (first == second) == (a == b)
    fetch(store, replacement, first)
    moved = fetch(store, replacement, second)
    assert moved.chunks == len({d for d, _ in walk(store, second)} - {d for d, _ in walk(store, first)})
    assert dict(restore(replacement, second)) == b
    assert fetch(store, replacement, second).chunks == 0


def chunks(store: ChunkStore) -> set[str]:
    """Names of all that it holds."""
    return {p.parent.name + p.name for p in store.folder.glob("??/*") if not p.name.startswith(".")}


def test_an_expert_that_changed_is_all_that_a_second_checkpoint_costs(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    experts = {f"layer{i}/expert{e}": bytes([i, e]) * 500 for i in range(4) for e in range(8)}
    save(store, experts, {"epoch": 1}, chunk_bytes=256)
    before = chunks(store)
    root = save(store, {**experts, "layer2/expert5": b"new" * 400}, {"epoch": 2}, chunk_bytes=256)
    new = chunks(store) - before
    kinds = sorted(checkpoints.read(store, d).kind for d in new)
    assert kinds == ["data"] * 4 + ["list", "tree", "tree"]  # 1200 bytes: five parts, the fourth as the first
    assert checkpoints.read(store, root).facts == {"epoch": 2}


def test_equal_chunks_are_stored_once(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    save(store, {"a": b"x" * 4096, "b": b"x" * 4096}, chunk_bytes=1024)
    assert len(chunks(store)) == 3  # one part, one list, one tree


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ChunkStore, str, str]:
    store = ChunkStore(tmp_path / "store")
    root = save(store, {"l/e": bytes(range(100))}, chunk_bytes=30)
    part = next(d for d, chunk in walk(store, root) if chunk.kind == "data")
    return store, root, part


def test_a_damaged_chunk_is_named(saved: tuple[ChunkStore, str, str]) -> None:
    store, root, part = saved
    data = bytearray(store.path(part).read_bytes())
    data[3] ^= 1
    store.path(part).write_bytes(bytes(data))
    with pytest.raises(ChunkError, match=f"chunk {part}: holds 31 bytes whose name is .* fetch it from another copy"):
        list(restore(store, root))


def test_a_missing_chunk_is_named(saved: tuple[ChunkStore, str, str]) -> None:
    store, root, part = saved
    store.path(part).unlink()
    with pytest.raises(ChunkError, match=f"chunk {part}: cannot be read") as caught:
        list(restore(store, root))
    assert caught.value.digest == part


def test_an_interrupted_fetch_goes_on_where_it_stopped(saved: tuple[ChunkStore, str, str], tmp_path: Path) -> None:
    store, root, _ = saved
    target = ChunkStore(tmp_path / "node")

    class Cut(Exception):
        pass

    def cut(digest: str, size: int) -> None:
        if len(chunks(target)) == 3:
            raise Cut

    with pytest.raises(Cut):
        fetch(store, target, root, cut)
    assert root not in target and not list(target.folder.glob("*/.*"))
    assert fetch(store, target, root).chunks == 7 - 3
    assert dict(restore(target, root)) == {"l/e": bytes(range(100))}


def test_data_does_not_pass_for_a_tree(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    root = save(store, {"a": b'T{"entries":{},"facts":{}}'})
    part = next(d for d, chunk in walk(store, root) if chunk.kind == "data")
    assert dict(restore(store, root))["a"].startswith(b"T{")
    assert checkpoints.read(store, part).kind == "data"
    for raw in (b"T{", b"Tnull", b"L{}", b"", b"X1"):
        with pytest.raises(ChunkError, match="is no tree, list or data chunk"):
            checkpoints.read(store, store.put(raw))


def test_a_list_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    part = store.put(b"Dabc")
    liar = store.put(b'L{"bytes":4,"parts":["' + part.encode() + b'"]}')
    with pytest.raises(ChunkError, match=f"chunk {liar}: names 3 bytes; it says 4"):
        checkpoints.blob_of(store, liar)
