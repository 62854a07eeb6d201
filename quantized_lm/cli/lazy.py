"""Commands that are imported when they are called: most need no torch, and a second less."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from quantized_lm.cli import COMMANDS
from quantized_lm.cli.console import FAILED, terminated_as_interrupted
from quantized_lm.ops import TORCH_REMEDY


class LibraryCommands(TyperGroup):
    """A group that has the commands of COMMANDS behind its own."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update({name: LazyCommand(name, summary) for name, summary in COMMANDS})


class LazyCommand(TyperCommand):
    """Stands for a command in the list of them, and becomes it when it is called."""

    def __init__(self, name: str, summary: str) -> None:
        super().__init__(name, help=summary)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """The context of the command itself, in which SIGTERM ends it as an interrupt does."""
        assert self.name is not None
        context = _imported(self.name).make_context(info_name, args, parent, **extra)
        context.with_resource(terminated_as_interrupted())
        return context


def _imported(name: str) -> Any:
    try:
        module = import_module(f"quantized_lm.cli.{name}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        typer.echo(f"error: `secondpass {name}` needs torch; {TORCH_REMEDY}", err=True)
        raise typer.Exit(FAILED) from None
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name)(module.run)
    return get_command(alone)
