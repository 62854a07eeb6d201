"""`secondpass api-key`: make, list and revoke keys of the file that the server reads."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from quantized_lm.cli.console import command, note, out
from service.api_keys import (
    SCOPES,
    ApiKey,
    KeyFileError,
    are_scopes,
    change_keys,
    hash_of,
    is_key_name,
    new_secret,
    read_keys,
)

AFTERWARDS = "send the server SIGHUP to have it read the file again"
File = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        envvar="SECONDPASS_API_KEYS_FILE",
        help="File of hashes, the server's SECONDPASS_API_KEYS_FILE.",
    ),
]
Name = Annotated[str, typer.Option(help="Whose key it is.")]
PerSecond = Annotated[float | None, typer.Option(min=1e-3, max=1e9, help="At most, per second.")]


def build_key_cli() -> typer.Typer:
    """The commands of `secondpass api-key`."""
    cli = typer.Typer(
        help="Make, list and revoke API keys.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for name, function in (("new", new), ("list", list_keys), ("revoke", revoke)):
        cli.command(name)(function)
    return cli


@command
def new(
    name: Name,
    file: File,
    scope: Annotated[
        list[str] | None, typer.Option(help="score or admin, repeatable. [default: score]")
    ] = None,
    requests_per_s: PerSecond = None,
    tree_nodes_per_s: PerSecond = None,
) -> None:
    """Make a key, print it this once, and store its hash.

    secondpass api-key new --name asr1 --scope score --file keys.json
    """
    if not is_key_name(name):
        raise KeyFileError(f"name is {name!r}; need 1 to 64 letters, digits, dots, - or _")
    scopes = tuple(dict.fromkeys(scope or ["score"]))
    if not are_scopes(scopes):
        raise KeyFileError(f"scopes are {', '.join(scopes)}; need {' or '.join(SCOPES)}")
    secret = new_secret()
    made = ApiKey(
        name=name,
        scopes=scopes,
        sha256=hash_of(secret),
        created=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        requests_per_s=requests_per_s,
        tree_nodes_per_s=tree_nodes_per_s,
    )

    def with_it(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if any(key.name == name for key in keys):
            raise KeyFileError(f"{file} has a key {name!r} already; revoke it or take another name")
        typer.echo(secret)  # before its hash is stored: a key that nobody could read is none
        return (*keys, made)

    change_keys(file, with_it)
    note(f"{file} has its hash; nobody can show it again; {AFTERWARDS}")


@command
def list_keys(file: File) -> None:
    """Show whose keys there are, never the keys.

    secondpass api-key list --file keys.json
    """
    table = Table("name", "scopes", "requests/s", "tree nodes/s", "created", box=None)
    for key in read_keys(file):
        limits = (key.requests_per_s, key.tree_nodes_per_s)
        shown = ("any" if limit is None else f"{limit:g}" for limit in limits)
        table.add_row(key.name, ",".join(key.scopes), *shown, key.created)
    out().print(table)


@command
def revoke(name: Name, file: File) -> None:
    """Take a key out of the file.

    secondpass api-key revoke --name asr1 --file keys.json
    """

    def without_it(keys: tuple[ApiKey, ...]) -> list[ApiKey]:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise KeyFileError(f"{file} has no key {name!r}; it has {known}")
        return left

    change_keys(file, without_it)
    note(f"{name} is revoked; {AFTERWARDS}")
