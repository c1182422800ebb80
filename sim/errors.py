"""What a user did wrong. The command line prints the message in one line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message names the file, field or flag and says what would be right."""


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not in the list, with the nearest one that is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"have {', '.join(names)}"
    return UserError(f"{what}: unknown name {name!r}; {hint}")
