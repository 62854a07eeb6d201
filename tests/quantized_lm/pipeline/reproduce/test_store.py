from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from quantized_lm.errors import DataError, RecipeError
from quantized_lm.pipeline.lock import only_one
from quantized_lm.pipeline.reproduce.store import FolderOf, Stage, Store


@dataclass(frozen=True, eq=False)
class Made(Stage):
    """Writes a file, or what it is told to do instead."""

    number: int
    after: tuple[Stage, ...] = ()
    failure: Exception | KeyboardInterrupt | None = None

    kind = "made"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return self.after

    @property
    def content(self) -> tuple[object, ...]:
        return (self.number,)

    @property
    def title(self) -> str:
        return f"make {self.number}"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        if self.failure:
            raise self.failure
        (folder / "made").write_text(" ".join(folder_of(stage).name for stage in self.after))


def ticking() -> float:
    ticking.now = getattr(ticking, "now", 0.0) + 10.0  # type: ignore[attr-defined]
    return float(ticking.now)  # type: ignore[attr-defined]


def test_a_key_depends_on_content_inputs_and_version_alone() -> None:
    class Newer(Made):
        version = 2

    one, two = Made(1), Made(2)
    assert one.key == Made(1, failure=RecipeError("no part of it")).key
    assert len({one.key, two.key, Made(1, (two,)).key, Made(1, (one,)).key, Newer(1).key}) == 5


def test_inputs_come_first_and_once() -> None:
    base = Made(0)
    left, right = Made(1, (base,)), Made(2, (Made(0),))
    top = Made(3, (left, right))
    assert [stage.title for stage in top.with_inputs()] == [
        "make 0",
        "make 1",
        "make 2",
        "make 3",
    ]


def test_a_stage_is_done_when_it_ran_and_not_before(tmp_path: Path) -> None:
    store, stage = Store(tmp_path, clock=ticking), Made(1)
    assert store.record(stage).status == "not run"
    store.run(stage)
    assert store.is_done(stage)
    assert store.record(stage).seconds == 10
    assert Store(tmp_path).is_done(Made(1))
    assert not store.is_done(Made(2))


def test_a_failure_keeps_its_reason_and_is_tried_again(tmp_path: Path) -> None:
    store = Store(tmp_path, clock=ticking)
    with pytest.raises(RecipeError):
        store.run(Made(1, failure=RecipeError("diverged\nat step 3")))
    assert store.record(Made(1)).status == "failed"
    assert store.record(Made(1)).reason == "diverged at step 3"
    store.run(Made(1))
    assert store.is_done(Made(1))
    assert store.record(Made(1)).seconds == 20  # of both attempts


def test_a_stopped_stage_is_not_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.run(Made(1, failure=KeyboardInterrupt()))
    assert store.record(Made(1)).status == "stopped"
    (store.folder(Made(1)) / "stage.json").unlink()  # a kill leaves no record
    assert store.record(Made(1)).status == "stopped"


@pytest.mark.parametrize("content", ["{", '{"key": 1}', "[]"])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    store = Store(tmp_path)
    store.run(Made(1))
    (store.folder(Made(1)) / "stage.json").write_text(content)
    with pytest.raises(DataError, match="stage.json"):
        store.is_done(Made(1))


def test_a_folder_of_another_stage_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.run(Made(1))
    store.folder(Made(1)).rename(store.folder(Made(2)))
    with pytest.raises(DataError, match="belongs to stage"):
        store.is_done(Made(2))


def test_two_runs_cannot_work_in_one_folder(tmp_path: Path) -> None:
    refused = pytest.raises(DataError, match="another `secondpass` works there")
    with only_one(tmp_path / "runs"), refused, only_one(tmp_path / "runs"):
        pass
    with only_one(tmp_path / "runs"):
        pass
