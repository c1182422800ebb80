"""Runs a typer application by the project's rules: exit 0 done, 2 bad input in one line, 1 the run failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import typer

try:
    from typer._click.exceptions import ClickException
except ImportError:  # typer before 0.26 does not bundle click
    from click import ClickException  # type: ignore[assignment]

from traces.errors import TraceError

DONE, RUN_FAILED, BAD_INPUT = 0, 1, 2
TYPER_INTERRUPTED = 130
"""What typer returns, without a word, when Ctrl-C stopped a command."""

Explain = Callable[[Exception], tuple[str, int] | None]
"""What an error of a command means, as message and exit code; None: it is a bug."""


def run(app: typer.Typer, program: str, arguments: Sequence[str] | None, explain: Explain) -> int:
    """Exit code of one call. Messages go to stderr, in one line each; a bug is raised, to be seen whole."""
    try:
        code = app(args=sys.argv[1:] if arguments is None else list(arguments), prog_name=program, standalone_mode=False)
        sys.stdout.flush()
        if code == TYPER_INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else DONE
    except ClickException as e:
        return _say(f"{program}: {_plain(e.format_message())}", BAD_INPUT)
    except TraceError as e:
        return _say(str(e), BAD_INPUT)
    except BrokenPipeError:  # the reader of our stdout went away; Python must not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUN_FAILED
    except (KeyboardInterrupt, typer.Abort):
        return _say(f"{program}: interrupted", RUN_FAILED)
    except Exception as e:
        meant = explain(e)
        if meant is None:
            raise
        return _say(*meant)


def _plain(message: str) -> str:
    if message == "Missing command.":
        return "missing command; --help lists them"
    return message.replace("Value error, ", "")


def _say(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
