"""What flags name with options: `NAME` or `NAME:OPTION=VALUE:...`, for a frozen dataclass whose fields are the options."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sim.errors import UserError, unknown


def build(flag: str, text: str, names: Mapping[str, tuple[str, str]], package: str) -> Any:
    """The object that `text` names, as in `consistent-hash:replicas=2`; names: module in `package` and class of each, imported when
    asked for.

    Raises `UserError` for an unknown name or option (with the nearest one) and for a value of the wrong kind.
    """
    name, *said = text.split(":")
    if name not in names:
        raise unknown(flag, name, names)
    module, attribute = names[name]
    found: type[Any] = getattr(importlib.import_module(f"{package}.{module}"), attribute)
    options = dict(_option(flag, name, found, option) for option in said)
    try:
        return found(**options)
    except UserError as e:
        raise UserError(f"{flag}: {name}: {e}") from None


def options(found: type[Any]) -> dict[str, Any]:
    """Those of a class, as they are said, and their defaults."""
    return {f.name.replace("_", "-"): f.default for f in fields(found)}


def _option(flag: str, name: str, found: type[Any], text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    known = {f.name.replace("_", "-"): f for f in fields(found)}
    if key not in known:
        raise unknown(f"{flag}: option of {name}", key, known) if known else UserError(f"{flag}: {name} has no options")
    kind: type[Any] = type(known[key].default)
    try:
        read = kind(value)
        if isinstance(read, float) and not math.isfinite(read):
            raise ValueError(value)
    except ValueError:
        right = "a whole number" if kind is int else "a number"
        raise UserError(f"{flag}: {name}: option {key}: has {value!r}; must be {right}") from None
    return known[key].name, read
