"""API keys: made once, shown once, kept as hashes in a file. Knows nothing of HTTP.

A key is 256 random bits, so nobody finds it by trying, however fast the hash is. SHA-256 costs a
request a microsecond; a slow hash, made for passwords that people choose, would cost it 100 ms.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self, TypeIs

from quantized_lm.errors import SecondpassError
from quantized_lm.files import write_atomic

PREFIX = "sp_"  # so that a key that has leaked is known for one
KEY_BYTES = 32
KEY_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
PRIVATE_MODE = stat.S_IRUSR | stat.S_IWUSR
KeyScope = Literal["score", "admin"]
SCORED_PATHS = "/v1/"
ADMIN_PATHS = "/v1/admin/"
SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)
Rate = Annotated[float, Field(gt=0.0, le=1e9)]


class KeyFileError(SecondpassError):
    """A file of API keys cannot be read or is wrong. Never quotes what stands in it."""


class ApiKey(BaseModel):
    """One key, without the key."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=f"^{KEY_NAME}$", description="Whose it is; unique.")
    scopes: tuple[KeyScope, ...] = Field(min_length=1, description="What it is good for.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Hash of the key.")
    created: str = Field(description="Date.")
    requests_per_s: Rate | None = Field(default=None, description="Null: as many as it likes.")
    tree_nodes_per_s: Rate | None = Field(default=None, description="Work of the engine, the same.")

    def __repr__(self) -> str:
        """The name alone."""
        return f"ApiKey({self.name!r})"


class KeyFile(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[ApiKey, ...]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have one name")
        return self


def new_secret() -> str:
    """A key that nobody has seen before."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_of(secret: str) -> str:
    """What is kept of a key, in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def find_key(keys: Sequence[ApiKey], secret: str) -> ApiKey | None:
    """The key that this is, if any.

    Compares with every key and in constant time: how long it takes says nothing of what is stored.
    """
    digest, found = hash_of(secret), None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file.

    Raises:
        KeyFileError: it cannot be read, or is not what `secondpass api-key` writes.
    """
    try:
        return KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = "/".join(str(step) for step in fault["loc"]) or "file"
        # A parser's message may quote what it read.
        what = "no JSON" if fault["type"] == "json_invalid" else fault["msg"]
        raise KeyFileError(
            f"{path}: {where}: {what}; need what `secondpass api-key new` writes"
        ) from None


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Replace the file in one piece; a new one is its owner's alone, an old one keeps its mode.

    Raises:
        KeyFileError: it cannot be written.
    """
    content = KeyFile(keys=tuple(keys)).model_dump_json(indent=1) + "\n"
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else PRIVATE_MODE
        write_atomic(path, content.encode())
        path.chmod(mode)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written ({error.strerror})") from None


def change_keys(path: Path, change: Callable[[tuple[ApiKey, ...]], Sequence[ApiKey]]) -> None:
    """Replace the keys of a file, or of none yet, by what `change` makes of them.

    Changes at the same time come one after another: each holds a lock on the folder, as the file
    itself is replaced.

    Raises:
        KeyFileError: the file cannot be read or written, or is wrong.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        write_keys(path, change(read_keys(path) if path.exists() else ()))
    finally:
        os.close(folder)


def is_key_name(name: str) -> bool:
    """Whether a key may be called so."""
    return re.fullmatch(KEY_NAME, name) is not None


def are_scopes(names: tuple[str, ...]) -> TypeIs[tuple[KeyScope, ...]]:
    """Whether a key may have all of these scopes."""
    return set(names) <= set(SCOPES)


def is_open_to_others(path: Path) -> bool:
    """Whether users beyond owner and group may read a file."""
    return bool(path.stat().st_mode & stat.S_IROTH)


def required_scope(path: str) -> KeyScope | None:
    """What a key has to be good for to ask for a path; None for everyone's."""
    if path.startswith(ADMIN_PATHS):
        return "admin"
    return "score" if path.startswith(SCORED_PATHS) else None
