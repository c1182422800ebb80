"""Tells of Numba's compilation, which only the first run on a computer waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sim.cli import output


@contextmanager
def told() -> Iterator[None]:
    """A note on stderr as soon as anything is compiled inside: that it is done once, and where it is kept."""
    from numba.core import event

    class Teller(event.Listener):  # type: ignore[misc]
        said = False

        def on_start(self, happened: event.Event) -> None:
            folder = happened.data["dispatcher"].stats.cache_path
            if folder is not None and not self.said:
                self.said = True
                output.note(f"compiling, which only the first run does and takes half a minute or more; kept in {folder}")

        def on_end(self, happened: event.Event) -> None:
            pass

    with event.install_listener("numba:compile", Teller()):
        yield
