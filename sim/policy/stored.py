"""Answers kept on disk, by a hash of everything that they depend on, the code included."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.policy.find import Found
from sim.workloads.schema import Workload
from traces.errors import TraceError
from traces.files import replacing

DIRECTORY = "TANDEM_CACHE"
"""Environment variable that names the folder; without it, `tandem` in the user's cache folder."""
CODE = ("sim", "kernels")
NOT_CODE = frozenset({"cli", "report", "explain", "reproduce", "testing"})
"""Parts of `sim` that no answer depends on."""


def folder() -> Path:
    """Where answers are kept."""
    if DIRECTORY in os.environ:
        return Path(os.environ[DIRECTORY])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tandem"


def key(model: ModelSpec, machine: Machine, workload: Workload, arguments: Mapping[str, Any]) -> str:
    """Hash of the question and of the code that answers it."""
    parts = (repr(model), machine.digest, workload.model_dump_json(), json.dumps(arguments, sort_keys=True), code())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@cache
def code() -> str:
    """Hash of every source file that an answer may depend on."""
    root = Path(__file__).parents[2]
    files = [p for package in CODE for p in sorted((root / package).rglob("*.py")) if not NOT_CODE & set(p.relative_to(root).parts)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def answer(name: str, compute: Callable[[], Found]) -> tuple[Found, str]:
    """What is kept under `name`, else what `compute` finds, kept from now on; and a remark on that, if there is any.

    An entry that cannot be read as an answer is computed again.
    """
    path = folder() / f"policy-{name}.json"
    began = time.perf_counter()
    found = _read(path)
    if found is not None:
        return replace(found, wall_s=time.perf_counter() - began), f"kept from an earlier search: {path}; --no-cache searches again"
    found = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(json.dumps({f.name: _plain(getattr(found, f.name)) for f in fields(found)}))
    except (OSError, TraceError) as e:
        return found, f"the answer could not be kept ({e}); {DIRECTORY} names another folder"
    return found, ""


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _read(path: Path) -> Found | None:
    try:
        return TypeAdapter(Found).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None  # nothing there, or cut off, or of another form: computed again
