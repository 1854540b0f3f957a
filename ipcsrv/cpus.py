"""How many CPUs this process may use: its affinity, and the quota of its control group (cgroups(7), version 2)."""

from __future__ import annotations

import math
import os

OWN_GROUP = "/proc/self/cgroup"
GROUPS = "/sys/fs/cgroup"


def usable_cpus(own_group: str = OWN_GROUP, groups: str = GROUPS) -> float:
    """Return the number of CPUs; a quota can make it a fraction.

    Args:
        own_group: the file that names the control group of this process.
        groups: where the control groups are mounted.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([affinity, *_quotas(own_group, groups)])


def whole_cpus() -> int:
    """Return the number of CPUs, rounded up: how many processes can be busy at a time."""
    return max(1, math.ceil(usable_cpus()))


def _quotas(own_group: str, groups: str) -> list[float]:
    """Return the quotas of the process's control group and of those around it: each of them holds."""
    quotas: list[float] = []
    for line in _read(own_group).splitlines():
        if not line.startswith("0::"):  # of version 1
            continue
        folder = os.path.normpath(groups + line[3:])
        while folder.startswith(groups):
            quota, _, period = _read(os.path.join(folder, "cpu.max")).partition(" ")
            if quota.isdigit() and period.strip().isdigit():  # else "max", or no such group here
                quotas.append(int(quota) / int(period))
            folder = os.path.dirname(folder)
    return quotas


def _read(name: str) -> str:
    try:
        with open(name, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
