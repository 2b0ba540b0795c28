"""The memory limit of this process's control groups (cgroups(7)): versions 1 and 2.

systemd's MemoryMax, a container's limit and a pod's limit all are limits of control groups. A limit
of a group counts for all groups below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

#: The file with a group's limit, by the type of the file system.
_LIMIT_FILES: Final = {"cgroup2": "memory.max", "cgroup": "memory.limit_in_bytes"}
#: Version 1 spells "no limit" as the largest whole number of pages below 2⁶³.
_NO_LIMIT: Final = 1 << 62


class _Mount(NamedTuple):
    """A mounted hierarchy of groups: `root`, a group of the hierarchy, is seen at `path`."""

    kind: str
    root: PurePosixPath
    path: PurePosixPath


def memory_limit(system: Path = Path("/")) -> int | None:
    """Return the lowest limit of this process's groups, in bytes; None without a limit.

    `system` is the root of the file system with /proc and /sys; tests have one of their own.
    """
    try:
        groups = dict(_groups(system / "proc/self/cgroup"))
        mounts = list(_mounts(system / "proc/self/mountinfo"))
    except (OSError, ValueError):  # no such file, or a line that is not understood
        return None
    limits = [
        _limit(system / directory.relative_to("/") / _LIMIT_FILES[mount.kind])
        for mount in mounts
        if mount.kind in groups
        for directory in _from_root(mount, groups[mount.kind])
    ]
    return min(filter(None, limits), default=None)


def _groups(file: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """Yield this process's group of each version that may limit memory."""
    for line in file.read_text().splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0":
            yield "cgroup2", PurePosixPath(group)
        elif "memory" in controllers.split(","):
            yield "cgroup", PurePosixPath(group)


def _mounts(file: Path) -> Iterator[_Mount]:
    """Yield where version 2, and the memory controller of version 1, are mounted."""
    for line in file.read_text(errors="surrogateescape").splitlines():
        mount, _, file_system = line.partition(" - ")
        kind = file_system.partition(" ")[0]
        if kind not in _LIMIT_FILES:  # the line may have other fields, or a path of any bytes
            continue
        _, _, _, root, path, *_ = mount.split()
        options = file_system.rpartition(" ")[2]
        if kind == "cgroup2" or "memory" in options.split(","):
            yield _Mount(kind, PurePosixPath(_plain(root)), PurePosixPath(_plain(path)))


def _plain(field: str) -> str:
    """Return a path of mountinfo, in which a space stands as \\040."""
    return field.replace("\\040", " ")


def _from_root(mount: _Mount, group: PurePosixPath) -> list[PurePosixPath]:
    """Return the directories of a group and of the groups above it, as far as they are mounted.

    In a container the mount may show the container's own group alone, and the group be spelled from
    outside: then that is the mount's root.
    """
    try:
        below = group.relative_to(mount.root)
    except ValueError:
        below = PurePosixPath()
    if ".." in below.parts:  # a group outside this process's control-group namespace
        below = PurePosixPath()
    return [mount.path / part for part in (below, *below.parents)]


def _limit(file: Path) -> int | None:
    try:
        limit = int(file.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return limit if 0 < limit < _NO_LIMIT else None
