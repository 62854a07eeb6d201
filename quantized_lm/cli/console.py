"""What every command shares: where it prints, how it fails, how it shows progress."""

from __future__ import annotations

import errno
import functools
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ParamSpec

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeRemaining
from rich.text import Text

from quantized_lm.errors import DataError, SecondpassError, explain

P = ParamSpec("P")
FAILED = 2
_FULL = {errno.ENOSPC, errno.EDQUOT}


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A command that answers an error of ours with one line on stderr and exit code 2.

    A disk that is full or may not be written to is no fault of ours, and is answered so, too, be it
    behind a file or behind standard output.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except SecondpassError as error:
            typer.echo(f"error: {explain(error)}", err=True)
            raise typer.Exit(FAILED) from None
        except BrokenPipeError:
            raise  # whoever reads our output has gone: typer ends in silence
        except OSError as error:
            where = error.filename
            if where is None and error.errno in _FULL:
                where = "standard output or a temporary file"
            if where is None:
                raise
            typer.echo(f"error: {where}: {error.strerror}", err=True)
            raise typer.Exit(FAILED) from None

    return guarded


def refuse_unused(context: typer.Context, unused: Mapping[str, str]) -> None:
    """Pass if none of these options was given, each of which would do nothing.

    Args:
        unused: parameters of the command's function, and what each of them needs.

    Raises:
        DataError: one was given.
    """
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for name, needed in unused.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise DataError(f"{options[name]} needs {needed}")


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises `KeyboardInterrupt`, so that what a command has begun is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def out() -> Console:
    """Standard output, for tables."""
    return Console(highlight=False, emoji=False, markup=False)


def note(message: str) -> None:
    """One line on stderr: results go to stdout or a file, remarks do not."""
    typer.echo(message, err=True)


def print_json(record: Mapping[str, object]) -> None:
    """One JSON object on one line of standard output."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")


def progress(noun: str) -> Progress:
    """A bar on stderr with items done, items per second and time left; gone when it is done.

    Nothing is drawn where stderr is no terminal.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(noun),
        TimeRemaining(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class _Rate(ProgressColumn):
    def __init__(self, noun: str) -> None:
        super().__init__()
        self.noun = noun

    def render(self, task: Task) -> Text:
        """Speed over the whole run once it is done, over the last seconds before."""
        speed = task.finished_speed or task.speed or 0.0
        return Text(f"{speed:.1f} {self.noun}/s")
