"""How many threads compute by default: the physical cores that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["default_threads"]

CGROUP = Path("/sys/fs/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """Physical cores among the CPUs of the affinity mask, and no more than the cgroup's share of time; at least 1."""
    try:
        cpus: Iterable[int] = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = len({_core(cpu) for cpu in cpus})
    return max(1, min(cores, _cgroup_cpus(CGROUP)))


def _core(cpu: int) -> str:
    """What the CPUs of one core have in common."""
    try:
        return (TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _cgroup_cpus(root: Path) -> int:
    """Whole CPUs of the group's quota (cgroup v2, then v1); a large number without one."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return 1 << 16
    if quota.strip() in ("max", "-1"):
        return 1 << 16
    return max(1, int(quota) // int(period))
