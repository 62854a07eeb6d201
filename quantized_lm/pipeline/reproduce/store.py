"""Where stages keep what they made, and the one place that decides whether it still holds.

A stage's folder is named by the hash of everything that decides its content, so what was made of
other text or another recipe is never found, let alone reused. File times play no part.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from quantized_lm.errors import DataError, SecondpassError
from quantized_lm.records import build, content_key, write_record

_HASH_DIGITS = 16
_RECORD = "stage.json"
Status = Literal["not run", "stopped", "failed", "done"]
FolderOf = Callable[["Stage"], Path]


class Stage(ABC):
    """A step whose result is decided by its content and its inputs alone.

    Subclasses are frozen dataclasses.

    Attributes:
        kind: names the step. version: raised when what the step computes changes.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    @abstractmethod
    def inputs(self) -> tuple[Stage, ...]:
        """Stages whose folders it reads."""

    @property
    @abstractmethod
    def content(self) -> tuple[object, ...]:
        """Dataclasses and JSON values: what decides the result besides the inputs."""

    @property
    @abstractmethod
    def title(self) -> str:
        """For the progress view."""

    @abstractmethod
    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Make the result in `folder`, which may hold what a killed run left."""

    @cached_property
    def key(self) -> str:
        """Sha256 of everything that decides the result."""
        return content_key(
            self.kind, self.version, [stage.key for stage in self.inputs], *self.content
        )

    def with_inputs(self) -> list[Stage]:
        """Itself and all that it needs, inputs first, each once."""
        found: dict[str, Stage] = {}
        for stage in self.inputs:
            found.update({one.key: one for one in stage.with_inputs()})
        found[self.key] = self
        return list(found.values())


@dataclass(frozen=True)
class StageRecord:
    """How a stage went.

    Attributes:
        key: of the stage. status: as `Store.record` tells it.
        seconds: spent on it, attempts that were stopped or failed included.
        reason: why it failed.
    """

    key: str
    title: str
    status: str
    seconds: float
    reason: str = ""


class Store:
    """The folder of a task at one size, with a folder for each stage.

    Args:
        root: made when something is first run.
        clock: monotonic seconds.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.root = root
        self._clock = clock

    def folder(self, stage: Stage) -> Path:
        """Of one stage."""
        return self.root / f"{stage.kind}-{stage.key[:_HASH_DIGITS]}"

    def record(self, stage: Stage) -> StageRecord:
        """What is known of a stage; "stopped" if it was begun and neither ended nor failed.

        Raises:
            DataError: the record is damaged.
        """
        path = self.folder(stage) / _RECORD
        if not path.exists():
            begun = self.folder(stage).exists()
            return StageRecord(stage.key, stage.title, "stopped" if begun else "not run", 0.0)
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); delete its folder") from None
        record = build(StageRecord, value, where=str(path), error=DataError)
        if record.key != stage.key:
            raise DataError(f"{path} belongs to stage {record.key}; delete its folder")
        return record

    def is_done(self, stage: Stage) -> bool:
        """Whether its folder holds the whole result."""
        return self.record(stage).status == "done"

    def run(self, stage: Stage) -> None:
        """Run a stage whose inputs are done; a killed run goes on where it can.

        Raises:
            SecondpassError: what the stage raises; the reason is kept.
        """
        folder = self.folder(stage)
        earlier = self.record(stage).seconds
        folder.mkdir(parents=True, exist_ok=True)
        started = self._clock()
        status, reason = "stopped", ""
        try:
            stage.run(folder, self.folder)
            status = "done"
        except SecondpassError as error:
            status, reason = "failed", " ".join(str(error).split())
            raise
        finally:
            seconds = round(earlier + self._clock() - started, 3)
            record = StageRecord(stage.key, stage.title, status, seconds, reason)
            write_record(folder / _RECORD, record)
