from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantized_lm.errors import DataError
from quantized_lm.files import require_file_name, write_atomic, write_named


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


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "file", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"new", b"newer"):  # first there is no file yet
        write_named(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert sorted(tmp_path.rglob("*")) == [link, target.parent, target]


def test_a_device_or_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    read, write = os.pipe()
    path = Path(f"/dev/fd/{write}")
    write_named(path, b"whole")
    os.close(write)
    assert os.read(read, 9) == b"whole"
    os.close(read)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_named(fifo, b"whole")
    assert os.read(read, 9) == b"whole"
    os.close(read)
    assert fifo.is_fifo()
    assert list(tmp_path.iterdir()) == [fifo]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written \(Is a directory\)"):
        write_named(tmp_path, b"")
    with pytest.raises(DataError, match="is a folder; need the name of a file"):
        require_file_name(tmp_path)
    with pytest.raises(DataError, match="absent is no folder"):
        require_file_name(tmp_path / "absent" / "file")
    require_file_name(tmp_path / "file")
