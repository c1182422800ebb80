"""Reads YAML into a pydantic model; every error at once, in one line, each with its field path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sim.errors import UserError, unknown

M = TypeVar("M", bound=BaseModel)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loader that reads 12.1e9 as a number (YAML 1.2); PyYAML wants a sign after the e."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE]\d+$"), list("-+0123456789"))


def read(path: Path) -> dict[str, Any]:
    """Top-level mapping of a YAML file. Raises `UserError` for what cannot be read, is malformed or is no mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text at byte {e.start}; a YAML file is needed") from None
    except yaml.MarkedYAMLError as e:
        where = f"line {e.problem_mark.line + 1} column {e.problem_mark.column + 1}: " if e.problem_mark else ""
        raise UserError(f"{path}: {where}malformed or truncated YAML ({e.problem})") from None
    except yaml.YAMLError as e:
        raise UserError(f"{path}: malformed YAML ({' '.join(str(e).split())})") from None
    if not isinstance(values, dict):
        kind = "nothing" if values is None else f"a {type(values).__name__}"
        raise UserError(f"{path}: holds {kind}; a YAML mapping is needed")
    return values


def parse(path: Path | str, values: dict[str, Any], model: type[M]) -> M:
    """Validate what `read` returned. Raises `UserError` with all that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as e:
        raise UserError(f"{path}: {describe(e)}") from None


def load(path: Path, model: type[M]) -> M:
    return parse(path, read(path), model)


def describe(error: ValidationError) -> str:
    """All errors of a validation in one line: `field.path: what is wrong (is ...)`, separated by semicolons."""
    return "; ".join(_one(e) for e in error.errors())


def _one(error: Any) -> str:
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"]).lstrip(".")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        message = "missing"
    elif error["type"] == "extra_forbidden":
        message = "unknown field"
    shown = repr(error["input"])
    value = f" (is {shown})" if error["type"] not in {"missing", "extra_forbidden"} and len(shown) <= 40 else ""
    return f"{path}: {message}{value}" if path else f"{message}{value}"


# Built-ins ------------------------------------------------------------------------------------------


def names(folder: Path) -> tuple[str, ...]:
    """The built-in configurations of a folder: its YAML files."""
    return tuple(sorted(p.stem for p in folder.glob("*.yaml")))


def locate(flag: str, name: str, folder: Path) -> Path:
    """The file that a flag names: a built-in of the folder, or a path. Raises `UserError` for an unknown name, with the nearest one."""
    known = names(folder)
    return folder / f"{name}.yaml" if name in known else own_file(flag, name, known)


def own_file(flag: str, name: str, known: Sequence[str]) -> Path:
    """The user's file that a flag names in place of a built-in. Raises `UserError` as `locate` does, and where there is no such file."""
    if not name.endswith((".yaml", ".yml")) and "/" not in name:
        raise unknown(flag, name, known)
    if not Path(name).exists():
        raise UserError(f"{flag} {name}: no such file; a YAML file or one of {', '.join(known)} is needed")
    return Path(name)
