"""What a machine and its control groups say is left, from files as Linux has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantized_lm.memory import available_bytes

MIB = 1 << 20
VERSION_2 = "0::/system.slice/pod\n"
VERSION_1 = "9:name=systemd:/\n4:cpu,memory:/pod\n"


def machine(root: Path, *, free_mib: int = 1000) -> Path:
    """A /proc with that much memory."""
    (root / "proc/self").mkdir(parents=True)
    text = f"MemTotal: 9999999 kB\nMemFree: 5 kB\nMemAvailable: {free_mib * 1024} kB\n"
    (root / "proc/meminfo").write_text(text, encoding="ascii")
    return root


def group(root: Path, folder: str, **files: str | int) -> None:
    """A control group; a file's name has _ for the dot."""
    home = root / "sys/fs/cgroup" / folder
    home.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (home / name.replace("__", ".")).write_text(f"{content}\n", encoding="ascii")


def belongs_to(root: Path, text: str) -> None:
    """Which groups the process is in."""
    (root / "proc/self/cgroup").write_text(text, encoding="ascii")


def test_without_a_group_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path)) == 1000 * MIB


def test_where_nobody_tells_it_is_unknown(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None


def test_a_group_of_version_2_counts_up_to_the_top(tmp_path: Path) -> None:
    belongs_to(machine(tmp_path), VERSION_2)
    group(tmp_path, "system.slice/pod", memory__max="max", memory__current=5)
    assert available_bytes(tmp_path) == 1000 * MIB
    group(tmp_path, "system.slice", memory__max=300 * MIB, memory__current=100 * MIB)
    assert available_bytes(tmp_path) == 200 * MIB
    group(tmp_path, "system.slice/pod", memory__max=120 * MIB, memory__current=70 * MIB)
    assert available_bytes(tmp_path) == 50 * MIB


def test_a_container_that_sees_its_group_as_the_top_is_bounded_by_it(tmp_path: Path) -> None:
    belongs_to(machine(tmp_path), "0::/\n")
    group(tmp_path, "", memory__max=120 * MIB, memory__current=70 * MIB)
    assert available_bytes(tmp_path) == 50 * MIB


def test_cached_files_are_not_in_the_way(tmp_path: Path) -> None:
    belongs_to(machine(tmp_path), "0::/\n")
    stat = f"anon 5\ninactive_file {30 * MIB}\nactive_file 7"
    group(tmp_path, "", memory__max=120 * MIB, memory__current=70 * MIB, memory__stat=stat)
    assert available_bytes(tmp_path) == 80 * MIB


@pytest.mark.parametrize("folder", ["memory/pod", "memory"])
def test_a_group_of_version_1_counts_unless_its_limit_is_none(tmp_path: Path, folder: str) -> None:
    belongs_to(machine(tmp_path), VERSION_1)
    limits = {"memory__usage_in_bytes": 70 * MIB, "memory__limit_in_bytes": 9223372036854771712}
    group(tmp_path, folder, **limits)
    assert available_bytes(tmp_path) == 1000 * MIB
    group(tmp_path, folder, memory__limit_in_bytes=120 * MIB)
    assert available_bytes(tmp_path) == 50 * MIB


def test_the_smaller_of_machine_and_group_is_what_is_left(tmp_path: Path) -> None:
    belongs_to(machine(tmp_path, free_mib=10), "0::/\n")
    group(tmp_path, "", memory__max=120 * MIB, memory__current=70 * MIB)
    assert available_bytes(tmp_path) == 10 * MIB


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="this machine has no /proc")
def test_this_machine_has_some() -> None:
    assert (available_bytes() or 0) > 0
