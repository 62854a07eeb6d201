"""The `secondpass` command: `serve` here, everything else from the library."""

from __future__ import annotations

import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from quantized_lm.artifact import model_folder
from quantized_lm.cli.console import command
from quantized_lm.cli.devices import BackendOption, DeviceOption, ThreadsOption
from quantized_lm.cli.lazy import LibraryCommands
from quantized_lm.errors import SecondpassError
from quantized_lm.ops import AUTO
from service.key_commands import build_key_cli
from service.settings import PREFIX, Settings, variables


class SettingsError(SecondpassError):
    """A setting is out of range."""


def main() -> None:
    """Run the command line."""
    build_cli()()


def build_cli() -> typer.Typer:
    """`serve` and every command of the library."""
    cli = typer.Typer(
        name="secondpass",
        cls=LibraryCommands,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # it would take "[default: 1]" for markup
    )
    cli.callback()(_root)
    cli.command("serve")(serve)
    cli.add_typer(build_key_cli(), name="api-key")
    return cli


def _show_settings(is_wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if is_wanted:
        for variable, default, description in variables():
            typer.echo(f"{variable}={default}")
            typer.echo(textwrap.indent(textwrap.fill(description, 74), "    "))
        raise typer.Exit


@command
def serve(
    model: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Model folder, repeatable. [default: en-small]"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port. [default: 8080]")] = None,
    device: DeviceOption = AUTO,
    backend: BackendOption = AUTO,
    threads: ThreadsOption = 0,
    *,
    _: Annotated[
        bool,
        typer.Option(
            "--settings",
            callback=_show_settings,
            is_eager=True,
            help="List the environment variables with their defaults, and end.",
        ),
    ] = False,
) -> None:
    """Serve models over HTTP until SIGTERM; requests in flight are finished.

    Every other setting, and these where they are not given, is an environment variable
    SECONDPASS_NAME: --settings lists them.

    secondpass serve --model models/en-small --port 8080

    secondpass serve --device cuda
    """
    from service.server import serve as run_server  # noqa: PLC0415 - half a second, of every command

    given = {
        "models": model,
        "host": host,
        "port": port,
        "device": device,
        "backend": backend,
        "threads": threads,
    }
    run_server(
        with_a_model(
            read_settings({name: value for name, value in given.items() if value is not None})
        )
    )


def with_a_model(settings: Settings) -> Settings:
    """The same settings with the folder of each model, and the bundled model where there is none.

    Raises:
        ArtifactError: there is no such folder, and no bundled model of that name.
    """
    folders = tuple(map(model_folder, settings.models)) or (model_folder(),)
    return settings.model_copy(update={"models": folders})


def read_settings(given: dict[str, Any]) -> Settings:
    """Settings from the environment, and over them those that were given.

    Raises:
        SettingsError: one is unusable.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(map(_told, error.errors()))) from None


def _told(fault: ErrorDetails) -> str:
    """What is wrong with a variable, or with several beside each other, which have no place."""
    variable = "_".join(str(step) for step in fault["loc"]).upper()
    return f"{PREFIX}{variable}: {fault['msg']}" if variable else fault["msg"]


def _show_version(is_wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if is_wanted:
        typer.echo(version("secondpass"))
        raise typer.Exit


def _root(
    *,
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Rescore speech recognition hypotheses with a bit-packed language model."""
