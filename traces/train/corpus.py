"""The text: every Python's own standard library, as byte tokens, some modules held out for evaluation."""

from __future__ import annotations

import sys
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BOUNDARY = 256
"""Token between two modules: begin and end of a text. The other tokens are byte values."""

HELD_OUT = (
    "argparse.py", "ast.py", "asyncio/events.py", "calendar.py", "collections/__init__.py", "csv.py", "dataclasses.py", "datetime.py",
    "decimal.py", "difflib.py", "email/message.py", "enum.py", "fractions.py", "functools.py", "gettext.py", "heapq.py", "html/parser.py",
    "http/client.py", "inspect.py", "ipaddress.py", "json/decoder.py", "logging/__init__.py", "mailbox.py", "optparse.py", "pathlib.py",
    "pickle.py", "random.py", "shutil.py", "socket.py", "statistics.py", "string.py", "subprocess.py", "tarfile.py", "tempfile.py",
    "textwrap.py", "threading.py", "tokenize.py", "typing.py", "unittest/case.py", "urllib/parse.py", "uuid.py", "zipfile.py",
)  # fmt: skip
"""Modules never trained on, from which the executor cuts its prompts: prose in docstrings and code in about equal parts. Their close
copies are in `TWINS`."""
TWINS = ("_pydecimal.py", "_pydatetime.py", "_strptime.py", "zipfile/__init__.py", "pathlib/__init__.py", "pathlib/_local.py")
"""Files that hold the text of a held-out module in this or another Python: trained on in none."""

LEFT_OUT = frozenset({
    "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "distutils", "lib2to3", "ensurepip",
    "encodings", "pydoc_data", "__pycache__", "_pyrepl",
})  # fmt: skip
"""Directories that are not in every installation, or that are tables rather than text."""


def library() -> Path:
    """Directory of the standard library's sources."""
    return Path(sysconfig.get_path("stdlib"))


def modules(held_out: bool) -> list[Path]:
    """Source files of the training part, or of the held-out part, in the order of their names."""
    root = library()
    if held_out:
        return [root / name for name in HELD_OUT if (root / name).is_file()]
    hidden = {*HELD_OUT, *TWINS}
    every = sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
    return [p for p in every if not _left_out(p.relative_to(root)) and p.relative_to(root).as_posix() not in hidden]


def _left_out(path: Path) -> bool:
    return bool(LEFT_OUT & set(path.parts)) or path.name.startswith("_sysconfigdata")


@cache
def tokens(held_out: bool) -> NDArray[np.uint16]:
    """All modules of a part, `BOUNDARY` before each and at the end, [tokens]. It depends on the Python version."""
    parts = [np.array([BOUNDARY], np.uint16)]
    for path in modules(held_out):
        parts += [np.frombuffer(path.read_bytes(), np.uint8).astype(np.uint16), parts[0]]
    return np.concatenate(parts)


def description() -> str:
    """One line that says which text this machine has: the figures belong to it."""
    train, held = tokens(False), tokens(True)
    version = ".".join(map(str, sys.version_info[:3]))
    return f"Python {version} standard library: {len(train)} training tokens, {len(held)} held out in {len(modules(True))} modules"
