"""What a result must say of where it was measured, and where results are kept. Knows nothing of models."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..backends.cpu_threads import default_threads
from ..kernels.cpu import native

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Machine:
    """The processor, its instruction set as the kernels use it, its cores, and the commit of the program."""

    cpu: str
    isa: str
    cores: int
    memory_bytes: int
    system: str
    commit: str
    time: str  # UTC

    @property
    def cpu_info(self) -> str:
        return f"{self.cpu} ({self.isa})" if self.isa else self.cpu


def describe_machine() -> Machine:
    names = native.isa_names()
    return Machine(
        cpu=_cpu_name(),
        isa=native.forced_isa() or (names[0] if names else "numpy"),
        cores=default_threads(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.machine()}",
        commit=_commit(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def save(name: str, rows: Sequence[Any], *, machine: Machine, folder: Path = RESULTS) -> Path:
    """Writes rows with the machine to `folder`, named by day, commit and `name`; the path written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine.time[:10]}-{machine.commit or 'unknown'}-{name}.json"
    path.write_text(json.dumps({"machine": asdict(machine), "rows": list(rows)}, indent=1) + "\n", "utf-8")
    return path


def resident_bytes() -> int:
    """Memory of this process that is in RAM, the pages of mapped files with it; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def _commit() -> str:
    """The short hash of the checkout's commit, "+" behind it where files differ; empty outside a checkout."""
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5)
        if commit.returncode:
            return ""
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", "runtime", "backends", "kernels"],
            capture_output=True,
            text=True,
            timeout=10,
        )
        return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""
