"""How much memory this process may still take: the machine's, and its control group's."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/")
_UNLIMITED_BYTES = 1 << 60  # what version 1 of control groups says where it has no limit is larger


def available_bytes(root: Path = _ROOT) -> int | None:
    """Bytes that can be taken without swapping or being killed; None where nobody tells.

    Args:
        root: where /proc and /sys are.
    """
    known = [left for left in (_machine(root), _group(root)) if left is not None]
    return min(known, default=None)


def _machine(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _group(root: Path) -> int | None:
    """What is left below the limit nearest to it, of this group and all above."""
    left: list[int] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        inside = path.strip("/")
        if controllers == "":
            left += _along(root / "sys/fs/cgroup", inside, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            left += _along(root / "sys/fs/cgroup/memory", inside, *names)
    return min(left, default=None)


def _along(top: Path, inside: str, limit_name: str, used_name: str) -> list[int]:
    """What is left of each limit from a group up to the top.

    A container often sees its own group as the top, whatever its path says.
    """
    group = top / inside
    folders = [group, *group.parents] if inside else [top]
    left = []
    for folder in folders:
        if not folder.is_relative_to(top):
            break
        limit, used = _text(folder / limit_name).strip(), _text(folder / used_name).strip()
        if limit.isdecimal() and used.isdecimal() and int(limit) < _UNLIMITED_BYTES:
            left.append(int(limit) - int(used) + _reclaimable(folder))
    return left


def _reclaimable(folder: Path) -> int:
    """Bytes of files that the kernel keeps only as long as nobody else wants the memory."""
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
