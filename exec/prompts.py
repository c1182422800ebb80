"""Real prompts that every computer has: slices of the Python standard library's own text, as byte tokens."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path

MODULES = (
    "argparse.py", "ast.py", "asyncio/events.py", "calendar.py", "collections/__init__.py", "csv.py", "dataclasses.py", "datetime.py",
    "decimal.py", "difflib.py", "email/message.py", "enum.py", "fractions.py", "functools.py", "gettext.py", "heapq.py", "html/parser.py",
    "http/client.py", "inspect.py", "ipaddress.py", "json/decoder.py", "logging/__init__.py", "mailbox.py", "optparse.py", "pathlib.py",
    "pickle.py", "random.py", "shutil.py", "socket.py", "statistics.py", "string.py", "subprocess.py", "tarfile.py", "tempfile.py",
    "textwrap.py", "threading.py", "tokenize.py", "typing.py", "unittest/case.py", "urllib/parse.py", "uuid.py", "zipfile.py",
)  # fmt: skip
"""Modules whose text is used, where this Python has them: prose in docstrings and code in about equal parts."""


@cache
def corpus() -> bytes:
    """The modules' text, one after another. It depends on the Python version."""
    root = Path(sysconfig.get_path("stdlib"))
    return b"\n".join(path.read_bytes() for name in MODULES if (path := root / name).is_file())


def byte_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """One prompt a length, as byte values 0..255, cut at seeded places that start a line."""
    text = corpus()
    draw = random.Random(seed)
    prompts = []
    for length in lengths:
        cut = text.find(b"\n", draw.randrange(len(text) - length - 4096)) + 1
        prompts.append(list(text[cut : cut + length]))
        assert len(prompts[-1]) == length, f"corpus of {len(text)} bytes is too short for a prompt of {length}"
    return prompts
