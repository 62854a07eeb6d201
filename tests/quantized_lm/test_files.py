from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantized_lm.errors import DataError
from quantized_lm.files import write_atomic, write_named


def full_disk(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    with pytest.raises(DataError, match=r"weights\.json: cannot be written \(No space left"):
        write_named(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        write_named(tmp_path / "absent" / "file", b"")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_named(tmp_path / "file" / "below", b"")
