"""What is read from disk is what the checkpoint holds, in every layout and dtype, or an error that names file and tensor."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exec.cli import app
from exec.pool.make import make_manifest
from exec.pool.manifest import LEAF_BYTES, NAME
from exec.pool.pool import Store, check_budgets
from exec.runtime import Interrupt, Interrupted
from exec.weights import load_dense, load_weights
from sim.errors import UserError
from tests.exec.pool import checkpoints
from tests.exec.pool.checkpoints import LARGE, SPEC, flip

FILE = "model.safetensors"
W1 = "model.layers.1.block_sparse_moe.experts.3.w1.weight"


def expert(store: Store, layer: int, e: int) -> np.ndarray:
    out = np.full(store.expert_floats, np.nan, np.float32)
    store.fill((layer, e), out, Interrupt())
    return out


def assert_reads_all(folder: Path) -> None:
    wanted = load_weights(folder, SPEC)
    with Store(folder, SPEC) as store:
        for layer, flat in enumerate(wanted.experts):
            for e, one in enumerate(flat.reshape(SPEC.experts, -1)):
                assert (expert(store, layer, e) == one).all(), (layer, e)
        dense = load_dense(store, SPEC, ())  # type: ignore[arg-type]
        assert (dense.lm_head == wanted.lm_head).all() and (dense.layers[1].wqkv == wanted.layers[1].wqkv).all()


def test_experts_and_dense_tensors_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    assert_reads_all(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoints.small(tmp_path)
    save_file({k: t.to(dtype) for k, t in load_file(tmp_path / FILE).items()}, tmp_path / FILE)
    make_manifest(tmp_path)
    assert_reads_all(tmp_path)


def test_fused_and_sharded_experts(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    tensors, moved = load_file(tmp_path / FILE), {}
    for i in range(SPEC.layers):
        old = f"model.layers.{i}.block_sparse_moe."
        parts = {w: torch.stack([tensors.pop(f"{old}experts.{e}.{w}.weight") for e in range(SPEC.experts)]) for w in ("w1", "w2", "w3")}
        moved[old + "experts.gate_up_proj"] = torch.cat([parts["w1"], parts["w3"]], 1)
        moved[old + "experts.down_proj"] = parts["w2"]
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(moved, tmp_path / "b.safetensors")
    (tmp_path / FILE).unlink()
    index = {"weight_map": {**dict.fromkeys(tensors, "a.safetensors"), **dict.fromkeys(moved, "b.safetensors")}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    make_manifest(tmp_path)
    assert_reads_all(tmp_path)


def test_an_expert_of_several_reads_and_fixed_staging(tmp_path: Path) -> None:
    wanted = checkpoints.large(tmp_path)
    with Store(tmp_path, LARGE) as store:
        landed: list[int] = []
        out = np.empty(store.expert_floats, np.float32)
        store.fill((0, 1), out, Interrupt(), lambda count: landed.append(4 * (count - sum(landed) // 4)))
        assert (out == wanted[1]).all()
        assert len(landed) >= 5 and sum(landed) == out.nbytes and max(landed) <= LEAF_BYTES
        assert store.loader.read_bytes == out.nbytes
        assert 1 <= store.loader.staging.taken <= store.loader.staging.count


def test_a_load_that_is_interrupted_says_how_much_was_there(tmp_path: Path) -> None:
    checkpoints.large(tmp_path)
    with Store(tmp_path, LARGE) as store:
        stop, out, landed = Interrupt(), np.zeros(store.expert_floats, np.float32), []

        def enough(count: int) -> None:
            landed.append(count)
            if len(landed) == 2:
                stop.set()

        with pytest.raises(Interrupted) as raised:
            store.fill((0, 0), out, stop, enough)
        assert 0 < raised.value.fraction_done < 1
        after = out.copy()
        assert (expert(store, 0, 1) != 0).any() and (out == after).all(), "somebody wrote on after the end"


# What breaks ------------------------------------------------------------------------------------------


def test_one_flipped_bit_names_file_and_tensor(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    flip(tmp_path, W1)
    with Store(tmp_path, SPEC) as store:
        expert(store, 1, 2)
        with pytest.raises(UserError, match=rf"{FILE}: tensor {W1}: bytes .* are not those of its checksum"):
            expert(store, 1, 3)


def test_a_bit_that_flips_during_the_run_is_seen_at_the_next_load(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    with Store(tmp_path, SPEC) as store:
        expert(store, 1, 3)
        flip(tmp_path, W1, byte=1000)
        with pytest.raises(UserError, match=W1):
            expert(store, 1, 3)


def test_a_dense_tensor_is_verified_as_well(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    flip(tmp_path, "model.norm.weight")
    with Store(tmp_path, SPEC) as store, pytest.raises(UserError, match="model.norm.weight"):
        load_dense(store, SPEC, ())  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [100, 60_000])
def test_truncated_during_the_run(tmp_path: Path, cut: int) -> None:
    checkpoints.small(tmp_path)
    with Store(tmp_path, SPEC) as store:
        os.truncate(tmp_path / FILE, os.path.getsize(tmp_path / FILE) - cut)
        with pytest.raises(UserError, match=rf"{FILE}: was truncated during the run"):
            expert(store, 0, 0)


def test_truncated_in_the_middle_of_a_load(tmp_path: Path) -> None:
    checkpoints.large(tmp_path)
    with Store(tmp_path, LARGE) as store:
        file = tmp_path / FILE
        with pytest.raises(UserError, match=rf"{FILE}: (was )?truncated"):
            store.fill((0, 1), np.empty(store.expert_floats, np.float32), Interrupt(), lambda count: os.truncate(file, 3 * LEAF_BYTES))
            expert(store, 0, 1)  # had all reads been done before the cut, the next load sees it


def test_truncated_before_the_run(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    os.truncate(tmp_path / FILE, os.path.getsize(tmp_path / FILE) - 5000)
    with pytest.raises(UserError, match=rf"{FILE}: truncated: has .* so tensor model\.\S+ is not whole"):
        Store(tmp_path, SPEC)


def test_deleted_and_replaced_during_the_run(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    with Store(tmp_path, SPEC) as store:
        shutil.copy(tmp_path / FILE, tmp_path / "copy")
        (tmp_path / FILE).unlink()
        with pytest.raises(UserError, match=rf"{FILE}: was deleted or became unreadable during the run"):
            expert(store, 0, 0)
        (tmp_path / "copy").rename(tmp_path / FILE)
        with pytest.raises(UserError, match=rf"{FILE}: was replaced by another file during the run"):
            expert(store, 0, 0)


def test_a_disk_that_fails_is_named_and_the_load_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.large(tmp_path)
    with Store(tmp_path, LARGE) as store:
        really, calls = os.preadv, []

        def failing(*args: object) -> int:
            calls.append(args)
            if len(calls) > 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return really(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "preadv", failing)
        with pytest.raises(UserError, match=rf"{FILE}: reading .* failed \(Input/output error\)"):
            expert(store, 0, 0)


def test_short_reads_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = checkpoints.large(tmp_path)
    really = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: really(fd, [buffers[0][:65536]], at))
    with Store(tmp_path, LARGE) as store:
        assert (expert(store, 0, 1) == wanted[1]).all()


@pytest.mark.parametrize("damage, message", [
    (lambda raw: bytes(100), "not a safetensors file"),
    (lambda raw: raw[:200], "truncated in its header"),
    (lambda raw: raw.replace(b'"shape"', b'"sheep"', 1), "its header is damaged"),
    (lambda raw: raw.replace(b'"shape":[64,96]', b'"shape":[96,64]', 1), "its header differs from the one in"),
])  # fmt: skip
def test_damaged_headers(tmp_path: Path, damage, message: str) -> None:
    checkpoints.small(tmp_path)
    file = tmp_path / FILE
    changed = damage(file.read_bytes())
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    with pytest.raises(UserError, match=rf"{FILE}: {message}"):
        Store(tmp_path, SPEC)


# The manifest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, message", [
    (None, f"{NAME}: no such file; .* make it: python -m exec manifest"),
    ("{", f"{NAME}: not a manifest"),
    ('{"format": 9, "algorithm": "xxh3_64", "leaf_bytes": 1}', f"{NAME}: format 9"),
    ('{"format": 1, "algorithm": "xxh3_64", "leaf_bytes": 4194304, "files": {}, "tensors": {}}', f"{NAME}: knows nothing of {FILE}"),
])  # fmt: skip
def test_manifests_that_are_none(tmp_path: Path, text: str | None, message: str) -> None:
    checkpoints.small(tmp_path)
    (tmp_path / NAME).unlink()
    if text is not None:
        (tmp_path / NAME).write_text(text)
    with pytest.raises(UserError, match=message):
        Store(tmp_path, SPEC)


def test_a_manifest_that_lost_a_tensor(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    data = json.loads((tmp_path / NAME).read_text())
    del data["tensors"][W1]
    (tmp_path / NAME).write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"tensor {W1}: its checksums are missing"):
        Store(tmp_path, SPEC)


@contextmanager
def little_room(nbytes: int) -> Iterator[None]:
    """Writes beyond so many bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_manifest(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    before, names = (tmp_path / NAME).read_bytes(), sorted(os.listdir(tmp_path))
    with little_room(1000), pytest.raises(UserError, match=rf"{NAME}: cannot be written \(File too large\); nothing is left of it"):
        make_manifest(tmp_path)
    assert (tmp_path / NAME).read_bytes() == before and sorted(os.listdir(tmp_path)) == names


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints.small(tmp_path)
    (tmp_path / NAME).unlink()
    assert app.main(["manifest", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tensors"] == len(load_file(tmp_path / FILE)) and facts["bytes"] == os.path.getsize(tmp_path / FILE)
    assert_reads_all(tmp_path)
    assert app.main(["manifest", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such directory" in capsys.readouterr().err


def test_budgets_that_hold_no_layers_top_k() -> None:
    size = 3 * SPEC.hidden * SPEC.ffn * 4
    check_budgets(SPEC, 2 * size, 2 * size)
    with pytest.raises(UserError, match=r"--device-budget .*: holds 1 experts of 73,728 bytes; the top 2 of one layer need 147,456"):
        check_budgets(SPEC, 2 * size, 2 * size - 1)
    with pytest.raises(UserError, match=r"--ram-budget 10: holds 0 experts"):
        check_budgets(SPEC, 10, 2 * size)
