"""Files of a checkpoint, open for direct reads, and whether each is still the one that was opened.

Direct (O_DIRECT) reads go from the disk to the buffer: no page cache that counts as somebody's memory, no
copy, and no read-ahead of what was not asked for. Where the file system has none (tmpfs), reads are
buffered and what they leave in the page cache is dropped behind them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exec.pool.staging import PAGE
from sim.errors import UserError

_AGAIN = "stop what changes it, then make its manifest again (python -m exec manifest)"


class WeightFile:
    """One file. direct: whether its reads go around the page cache."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd, self.direct = _open(path)
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror}); a safetensors file is needed") from None
        self._opened = _identity(os.fstat(self.fd))

    def close(self) -> None:
        os.close(self.fd)

    def check(self) -> None:
        """Raises UserError where the file has been deleted, replaced, or has another size than when it was opened."""
        try:
            found = _identity(os.stat(self.path))
        except OSError as e:
            raise UserError(f"{self.path}: was deleted or became unreadable during the run ({e.strerror}); put it back") from None
        if found[:2] != self._opened[:2]:
            raise UserError(f"{self.path}: was replaced by another file during the run; {_AGAIN}")
        if found[2] != self._opened[2]:
            how = "truncated" if found[2] < self._opened[2] else "made longer"
            raise UserError(f"{self.path}: was {how} during the run, {self._opened[2]:,} bytes to {found[2]:,}; {_AGAIN}")

    def read(self, buffer: NDArray[np.uint8], offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes offset .. offset + nbytes - 1, as a view of `buffer`, which has room for two pages more.

        Raises UserError where the file ends before, or the disk fails.
        """
        start = offset // PAGE * PAGE
        end = -(-(offset + nbytes) // PAGE) * PAGE
        needed, got = offset + nbytes - start, 0
        while got < needed:
            try:
                count = os.preadv(self.fd, [memoryview(buffer)[got : end - start]], start + got)  # type: ignore[list-item]
            except OSError as e:
                raise UserError(f"{self.path}: reading {nbytes:,} bytes from byte {offset:,} on failed ({e.strerror})") from None
            got += count
            if got < needed and (not count or got % PAGE):  # only the end of the file is no whole page
                raise UserError(f"{self.path}: truncated: ends before byte {offset + nbytes:,}; {_AGAIN}")
        if not self.direct:
            os.posix_fadvise(self.fd, start, end - start, os.POSIX_FADV_DONTNEED)
        return buffer[offset - start : offset - start + nbytes]


def _open(path: Path) -> tuple[int, bool]:
    if hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECT), True
        except OSError:
            pass  # no such reads in this file system: the buffered ones below, which report what else is wrong
    return os.open(path, os.O_RDONLY), False


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_dev, found.st_ino, found.st_size
