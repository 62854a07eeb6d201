"""Every setting of the server, typed. Built once by the command line and passed down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1 << 20


class Settings(BaseSettings):
    """One field per setting; the environment variable is SECONDPASS_ and the field in capitals.

    Raises:
        pydantic.ValidationError: a value is missing, of the wrong type or out of range, or an
            argument is not a setting.
    """

    model_config = SettingsConfigDict(env_prefix="SECONDPASS_", frozen=True, extra="forbid")

    models: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Model folders to serve; in the environment separated as in PATH.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8080, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    backend: str = Field(
        default="auto", description="Kernels of the packed layers: `auto` or a backend's name."
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
        default=64 * MIB,
        ge=1,
        description="The same of /v1/rescore/lattice, packed with gzip or not.",
    )
    max_lattice_arcs: int = Field(default=100_000, ge=1, description="Arcs of one lattice.")
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

    @field_validator("models", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        return value
