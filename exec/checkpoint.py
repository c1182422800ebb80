"""Named tensors of a directory of safetensors files, memory-mapped and converted to float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from sim.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """A context manager; `name in files`, `files.read(name, shape)`, `files.read_into(name, out)`.

    Errors are `UserError`s that name the file, and the tensor where there is one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}
        self._file_of = index_of(directory)

    def __enter__(self) -> Self:
        if not self._file_of:
            path = self.directory / SINGLE
            self._file_of = dict.fromkeys(self._handle(path).keys(), path)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._open.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        out = np.empty(shape, np.float32)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: np.ndarray, shape: tuple[int, ...] | None = None, part: range | None = None) -> None:
        """Copy and convert one tensor; `shape`: that in the file, where `out` has another; `part`: of its first dimension."""
        import torch

        tensor = self._tensor(name, list(shape or out.shape))
        if part is not None:
            tensor = tensor[part.start : part.stop]
        torch.from_numpy(out).copy_(tensor.reshape(out.shape))

    def view(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """A tensor as the file has it, mapped: nothing is read before it is used. It outlives this object."""
        tensor = self._tensor(name, list(shape))
        if tensor.dtype != dtype:
            raise UserError(f"{self._file_of[name]}: tensor {name} has dtype {tensor.dtype}; config.json says {dtype}")
        return tensor

    def _tensor(self, name: str, expected: list[int]) -> Any:
        if name not in self._file_of:
            raise UserError(f"{self.directory / (INDEX if self._sharded else SINGLE)}: tensor {name} is missing; it needs shape {expected}")
        path = self._file_of[name]
        handle = self._handle(path)
        if name not in handle.keys():
            raise UserError(f"{path}: tensor {name} is missing, though {INDEX} says that it is here")
        with _named_errors(path, name):
            tensor = handle.get_tensor(name)
        if list(tensor.shape) != expected:
            raise UserError(f"{path}: tensor {name} has shape {list(tensor.shape)}; config.json needs {expected}")
        if not tensor.dtype.is_floating_point:
            raise UserError(f"{path}: tensor {name} has dtype {tensor.dtype}; float32, float16 or bfloat16 is needed")
        return tensor

    @property
    def _sharded(self) -> bool:
        return (self.directory / INDEX).exists()

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            from safetensors import safe_open

            if not path.is_file():
                raise UserError(f"{path}: no such file; {SINGLE} or {INDEX} with its shards is needed")
            with _named_errors(path):
                self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._open[path]


def index_of(directory: Path) -> dict[str, Path]:
    """File of each tensor by the index of a sharded model; empty where there is no index."""
    path = directory / INDEX
    if not path.exists():
        return {}
    try:
        names = json.loads(path.read_text())["weight_map"]
        return {str(name): directory / file for name, file in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f'{path}: not a safetensors index ({error!r}); {{"weight_map": {{tensor: file}}}} is needed') from None


@contextmanager
def _named_errors(path: Path, name: str = "") -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        where = f"{path}: tensor {name}" if name else f"{path}"
        raise UserError(f"{where}: not a whole safetensors file ({error}); download or write it again") from None
