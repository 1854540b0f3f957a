"""How many CPUs this process may use: its affinity, and the quota of its control group (cgroups(7), version 2)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus(own_group: Path = Path("/proc/self/cgroup"), groups: Path = _CGROUPS) -> float:
    """Return the number of CPUs; less than a whole one is possible with a quota.

    Args:
        own_group: the file that names the control group of this process.
        groups: where the control groups are mounted.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([affinity, *_quotas(own_group, groups)])


def _quotas(own_group: Path, groups: Path) -> list[float]:
    """Return the quotas of the process's group and of those around it; each binds."""
    quotas: list[float] = []
    try:
        lines = own_group.read_text().splitlines()
    except OSError:
        return quotas
    for own in (line[3:].lstrip("/") for line in lines if line.startswith("0::")):
        for folder in (groups / own, *(groups / own).parents):
            if folder == groups.parent:
                break
            with contextlib.suppress(OSError, ValueError):  # no such group here, or "max"
                quota, period = (folder / "cpu.max").read_text().split()
                quotas.append(float(quota) / float(period))
    return quotas
