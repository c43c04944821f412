"""How many threads compute by default: the physical cores that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["default_threads", "most_threads"]

SYSTEM = Path("/")
UNLIMITED = float("inf")


def most_threads() -> int:
    """Threads beyond which more of them only wait for each other: four for each processor of the machine."""
    return 4 * (os.cpu_count() or 1)


def default_threads(system: Path = SYSTEM) -> int:
    """Physical cores among the CPUs of the affinity mask, and no more than the cgroup's share of time; at least 1."""
    try:
        cpus: Iterable[int] = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = len({_core(system, cpu) for cpu in cpus})
    # Rounded down: threads beyond the quota would use it up early, and then all would be put to rest.
    return max(1, int(min(cores, cgroup_cpus(system))))


def _core(system: Path, cpu: int) -> str:
    """What the CPUs of one core have in common."""
    return _read(system / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def cgroup_cpus(system: Path = SYSTEM) -> float:
    """CPUs' worth of time that the process's control groups allow; each group around it counts too."""
    return min((_quota(folder) for folder in _cgroups(system)), default=UNLIMITED)


def _cgroups(system: Path) -> Iterator[Path]:
    """The folders of the groups that this process is in, version 1 and 2, from the innermost out."""
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            roots = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            roots = ["sys/fs/cgroup/cpu", f"sys/fs/cgroup/{controllers}"]
        else:
            continue
        for root in roots:
            # In a container the path may be the host's, of which only the root is visible here.
            path = Path(group.lstrip("/"))
            for part in (path, *path.parents):
                yield system / root / part


def _quota(folder: Path) -> float:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    try:
        return int(quota) / int(period) if int(quota) > 0 else UNLIMITED
    except (ValueError, ZeroDivisionError):  # "max", or nothing to read
        return UNLIMITED


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
