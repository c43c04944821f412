"""How many threads the CPU backend starts with, on systems made of files."""

from __future__ import annotations

import os

import pytest
from layerlift.backends import cpu_threads


def a_system(folder, files, siblings=None):
    for cpu in range(8):
        path = folder / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(f"{cpu % siblings},{cpu % siblings + siblings}\n" if siblings else f"{cpu}\n")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


V2 = "0::/app/worker\n"
V1 = "5:memory:/x\n4:cpu,cpuacct:/app\n3:cpuset:/\n0::/\n"
CASES = {
    "no groups at all": ({}, 8),
    "v2 without limit": ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/worker/cpu.max": "max 100000\n"}, 8),
    "v2 of the process": ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/worker/cpu.max": "300000 100000\n"}, 3),
    "v2 of a group around it": (
        {
            "proc/self/cgroup": V2,
            "sys/fs/cgroup/app/worker/cpu.max": "max 100000\n",
            "sys/fs/cgroup/app/cpu.max": "200000 100000\n",
        },
        2,
    ),
    "v2 in a container that sees only its root": (
        {"proc/self/cgroup": "0::/docker/1f3a\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"},
        4,
    ),
    "v2 beside v1": ({"proc/self/cgroup": V2, "sys/fs/cgroup/unified/app/cpu.max": "500000 100000\n"}, 5),
    "less than one": ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
    "two and a part": ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "290000 100000\n"}, 2),
    "v1 without limit": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
    "v1 of the process": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "v1 of the root": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "600000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        6,
    ),
    "files that make no sense": ({"proc/self/cgroup": "nonsense\n0::\n", "sys/fs/cgroup/cpu.max": "x y z\n"}, 8),
    "a period of nothing": ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "100000 0\n"}, 8),
}


@pytest.mark.parametrize("case", CASES)
def test_threads_are_what_the_groups_allow(case, tmp_path):
    files, expected = CASES[case]
    assert cpu_threads.default_threads(a_system(tmp_path, files)) == expected


def test_threads_of_one_core_count_once(tmp_path):
    assert cpu_threads.default_threads(a_system(tmp_path, {}, siblings=4)) == 4


def test_only_cpus_of_the_affinity_mask_count(tmp_path, monkeypatch):
    system = a_system(tmp_path, {}, siblings=4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 1}, raising=False)
    assert cpu_threads.default_threads(system) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks on this system")
def test_this_machines_own_mask_is_respected(monkeypatch):
    monkeypatch.undo()
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu_threads.default_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_thousand_threads_are_cut_to_what_the_machine_can_use():
    from layerlift.backends.cpu import CpuBackend
    from layerlift.backends.cpu_threads import most_threads

    if not CpuBackend.probe().devices:
        pytest.skip(CpuBackend.probe().reason)
    backend = CpuBackend.open(CpuBackend.probe().devices[0], threads=1000)
    assert backend.threads == most_threads() < 1000
    backend.close()
