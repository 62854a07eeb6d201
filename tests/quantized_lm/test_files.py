from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.parametrize("flags", [os.O_APPEND, 0])
def test_what_is_open_already_is_written_behind_what_is_there(tmp_path: Path, flags: int) -> None:
    path, link, outer = tmp_path / "app.jsonl", tmp_path / "link", tmp_path / "outer"
    path.write_bytes(b"old\n" if flags else b"")
    number = os.open(path, os.O_WRONLY | flags)  # as `>>` and `>` of a shell
    try:
        os.write(number, b"before\n")
        link.symlink_to(f"/dev/fd/{number}")
        outer.symlink_to("link")
        for name in (f"/dev/fd/{number}", f"/proc/self/fd/{number}", link, outer):
            write_named(Path(name), b"lines\n")
        os.write(number, b"table\n")
    finally:
        os.close(number)
    lines = path.read_bytes().split()
    assert lines == [*([b"old"] if flags else []), b"before", *4 * [b"lines"], b"table"]
    assert sorted(tmp_path.iterdir()) == [path, link, outer]
    for gone in (outer, Path(f"/dev/fd/{2**64}"), Path("/dev/fd/..")):
        with pytest.raises(DataError, match="cannot be written"):
            write_named(gone, b"")


def test_standard_output_may_be_a_file(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from quantized_lm.files import write_named\n"
        "write_named(Path('/dev/stdout'), b'new\\n'); print('table')"
    )
    path = tmp_path / "app.jsonl"
    path.write_text("old\n")
    with path.open("ab") as handle:
        subprocess.run([sys.executable, "-c", code], stdout=handle, check=True)
    assert path.read_text() == "old\nnew\ntable\n"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written \(Is a directory\)"):
        write_named(tmp_path, b"")
    with pytest.raises(DataError, match="is a folder; need the name of a file"):
        require_file_name(tmp_path)
    with pytest.raises(DataError, match="absent is no folder"):
        require_file_name(tmp_path / "absent" / "file")
    require_file_name(tmp_path / "file")
