"""Every setting of the server, typed. Built once by the command line and passed down."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1 << 20
MAX_DEADLINE_MS = 3_600_000.0
BUDGETS_QUEUED = 16
PREFIX = "SECONDPASS_"
LIKENESS = 0.75  # of two names, one of which is taken for a slip of the other


class Settings(BaseSettings):
    """One field per setting; the environment variable is SECONDPASS_ and the field in capitals.

    Raises:
        pydantic.ValidationError: a value is missing, of the wrong type or out of range, or an
            argument is not a setting.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    models: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Model folders to serve; in the environment separated as in PATH.",
    )
    model_folder: Path | None = Field(
        default=None,
        description="The only folder from whose subfolders admin routes may load models.",
    )
    weights_files: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Files of `secondpass tune`, for weights that a request does not give; in the "
        "environment separated as in PATH. Without one a model's own weights count.",
    )
    host: str = Field(
        default="127.0.0.1", description="Address to listen on; of a name, all that are here."
    )
    port: int = Field(default=8080, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    admin_host: str = Field(
        default="127.0.0.1", description="Address of the admin port, where there is one."
    )
    admin_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of admin routes, metrics and health; then the main one has no admin "
        "routes and no metrics.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="Hashes of API keys, as `secondpass api-key` writes them; without it scoring "
        "needs no key and admin routes are refused.",
    )
    read_timeout_s: float = Field(
        default=10.0,
        gt=0.0,
        le=3600.0,
        description="Seconds a client has to send one whole request; who takes nothing of an "
        "answer for as long is given up.",
    )
    max_connections: int = Field(
        default=2000,
        ge=1,
        description="Open connections; above it the one that has waited longest for a request "
        "is closed.",
    )
    device: str = Field(
        default="auto",
        description="Where models run: `cpu`, `cuda`, an NVIDIA GPU, or `auto`, the CPU.",
    )
    backend: str = Field(
        default="auto",
        description="Kernels of the packed layers: `auto`, the device's own, or a backend's name.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads of the cpu backend; 0: one on each core this process may use.",
    )
    pin_threads: bool = Field(
        default=False, description="Whether each of those threads stays on one core."
    )
    budget_tokens: int = Field(
        default=16_384,
        ge=1,
        description="Tree nodes in one forward pass, and so in one utterance.",
    )
    max_body_bytes: int = Field(
        default=8 * MIB, ge=1, description="Largest request body, in bytes."
    )
    max_lattice_body_bytes: int = Field(
        default=16 * MIB,
        ge=1,
        description="The same of /v1/rescore/lattice, packed with gzip or not; reading one in JSON "
        "takes up to 30 times its bytes.",
    )
    max_lattice_arcs: int = Field(default=100_000, ge=1, description="Arcs of one lattice.")
    default_deadline_ms: float = Field(
        default=2_000.0,
        gt=0.0,
        le=MAX_DEADLINE_MS,
        description="Deadline of a request that names none, from its first byte.",
    )
    max_deadline_ms: float = Field(
        default=30_000.0,
        gt=0.0,
        le=MAX_DEADLINE_MS,
        description="Latest deadline that a request may ask for.",
    )
    max_queued_requests: int = Field(
        default=256, ge=1, description="Requests that wait for the engine; any more are a 429."
    )
    max_queued_tokens: int = Field(
        default=0,
        ge=0,
        description="Tree nodes that wait for the engine, likewise; 0: 16 times the budget.",
    )
    prefix_cache_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        description="Token trees of each model kept for contexts and partial lists; 0: none.",
    )
    drain_s: float = Field(
        default=0.0,
        ge=0.0,
        le=3600.0,
        description="Seconds to go on serving after SIGTERM, while /health/ready says 503.",
    )
    shutdown_s: int = Field(
        default=30,
        ge=1,
        le=3600,
        description="Seconds given to requests in flight once the port is closed.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe message that is logged."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        default="auto", description="Of log lines; auto: text on a terminal, json elsewhere."
    )
    access_log: bool = Field(
        default=False, description="Whether every request is logged, not only failed and slow ones."
    )
    slow_request_ms: float = Field(
        default=1000.0, gt=0.0, description="Requests that take longer are logged as slow."
    )
    log_text: bool = Field(
        default=False,
        description="Whether tracebacks keep their messages, which may quote what was sent.",
    )

    @model_validator(mode="after")
    def _default_deadline_is_allowed(self) -> Settings:
        if self.default_deadline_ms > self.max_deadline_ms:
            raise ValueError(
                f"{PREFIX}DEFAULT_DEADLINE_MS is {self.default_deadline_ms:g}; "
                f"need at most {PREFIX}MAX_DEADLINE_MS, which is {self.max_deadline_ms:g}"
            )
        return self

    @property
    def queue_tokens(self) -> int:
        """Most tree nodes that may wait."""
        return self.max_queued_tokens or BUDGETS_QUEUED * self.budget_tokens

    @field_validator("model_folder", "api_keys_file", mode="before")
    @classmethod
    def _is_a_path(cls, value: object) -> object:
        # It would be the folder that the server was started in.
        if value == "":
            raise ValueError("it is empty; need a path, or no such variable")
        return value

    @field_validator("models", "weights_files", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        return value


def variables() -> Iterator[tuple[str, str, str]]:
    """Each environment variable, what it is if it is not set ("" for nothing), and what it does."""
    for name, field in Settings.model_fields.items():
        default = "" if field.default in ((), None) else str(field.default)
        yield PREFIX + name.upper(), default, field.description or ""


def misspelled(names: Iterable[str]) -> dict[str, str]:
    """Environment variables that look like settings and are none: their names to the settings'."""
    known = [name.upper() for name in Settings.model_fields]
    found = {}
    for variable in names:
        name = variable.removeprefix(PREFIX)
        if name == variable or name in known:
            continue
        if near := difflib.get_close_matches(name, known, n=1, cutoff=LIKENESS):
            found[variable] = PREFIX + near[0]
    return found
