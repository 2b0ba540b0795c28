"""The limit of the control groups, as Docker, Kubernetes and systemd set it, on both versions."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.connections.cgroup import memory_limit

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "34 31 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
NONE = "9223372036854771712"  # what version 1 says without a limit


class System:
    """A root directory with the files of /proc and /sys that a process sees."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def limit(self, groups: str, mounts: str, limits: Mapping[str, str]) -> int | None:
        """Return what is found, where the files under /sys/fs/cgroup have these contents."""
        files = {f"sys/fs/cgroup/{path}": text for path, text in limits.items()}
        files |= {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
        for path, text in files.items():
            file = self._root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return memory_limit(self._root)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_version_2_in_a_container(system: System) -> None:
    assert system.limit("0::/", V2, {"memory.max": "314572800"}) == 314_572_800


def test_no_limit(system: System) -> None:
    assert system.limit("0::/", V2, {"memory.max": "max"}) is None


def test_systemds_memory_max_is_a_limit_of_the_services_group(system: System) -> None:
    limits = {
        "system.slice/memory.max": "max",
        "system.slice/pushgate.service/memory.max": "1073741824",
    }
    assert system.limit("0::/system.slice/pushgate.service", V2, limits) == 1 << 30


def test_a_lower_limit_of_a_group_above_counts(system: System) -> None:
    limits = {
        "system.slice/memory.max": "536870912",
        "system.slice/pushgate.service/memory.max": "1073741824",
    }
    assert system.limit("0::/system.slice/pushgate.service", V2, limits) == 1 << 29


def test_version_1_of_a_service(system: System) -> None:
    groups = "11:cpu:/\n4:memory:/system.slice/pushgate.service\n"
    limits = {
        "memory/memory.limit_in_bytes": NONE,
        "memory/system.slice/pushgate.service/memory.limit_in_bytes": "1073741824",
        "cpu/memory.limit_in_bytes": "1",
    }
    assert system.limit(groups, V1, limits) == 1 << 30


def test_version_1_without_a_limit(system: System) -> None:
    limits = {"memory/memory.limit_in_bytes": NONE}
    assert system.limit("4:cpuacct,memory:/", V1, limits) is None


def test_version_1_in_a_container_that_sees_its_own_group_alone(system: System) -> None:
    mounts = "35 31 0:32 /docker/5f3e /sys/fs/cgroup/memory ro master:9 - cgroup cgroup rw,memory\n"
    limits = {"memory/memory.limit_in_bytes": "314572800"}
    assert system.limit("4:memory:/docker/5f3e", mounts, limits) == 314_572_800
    assert system.limit("4:memory:/kubepods/pod7/5f3e", mounts, limits) == 314_572_800


def test_version_2_in_a_group_beside_the_namespaces_root(system: System) -> None:
    assert system.limit("0::/../other", V2, {"memory.max": "314572800"}) == 314_572_800


def test_both_versions_side_by_side(system: System) -> None:
    limits = {"memory/app/memory.limit_in_bytes": "314572800", "unified/x": ""}
    assert system.limit("4:memory:/app\n0::/", HYBRID, limits) == 314_572_800


def test_a_system_whose_files_are_not_understood(system: System) -> None:
    assert system.limit("?\n", "?\n", {"memory.max": "314572800"}) is None


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None
