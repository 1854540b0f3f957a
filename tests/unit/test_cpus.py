"""The CPUs that a process may use: its affinity and the quotas of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipcsrv import cpus


def control_groups(folder: Path, quotas: dict[str, str], line: str = "0::/pod/box\n") -> tuple[str, str]:
    """Make a tree of control groups, and the file that names this process's."""
    for name, quota in quotas.items():
        (folder / "groups" / name).mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name / "cpu.max").write_text(quota)
    (folder / "own").write_text(line)
    return os.fspath(folder / "own"), os.fspath(folder / "groups")


@pytest.mark.parametrize(("quotas", "expected"), [
    ({"pod/box": "50000 100000\n"}, 0.5),
    ({"pod/box": "max 100000\n", "pod": "75000 100000\n"}, 0.75),
    ({"pod/box": "80000 100000\n", "pod": "20000 100000\n"}, 0.2),
])
def test_quota_of_each_control_group_holds(tmp_path: Path, quotas: dict[str, str], expected: float) -> None:
    assert cpus.usable_cpus(*control_groups(tmp_path, quotas)) == expected


@pytest.mark.parametrize("line", ["", "1:cpu:/pod\n", "0::/gone\n", "0::/../..\n"])
def test_affinity_alone_holds_without_a_quota(tmp_path: Path, line: str) -> None:
    own_group, groups = control_groups(tmp_path, {"pod": "max 100000\n"}, line)
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cpus.usable_cpus(own_group, groups) == affinity
    assert cpus.usable_cpus(os.fspath(tmp_path / "missing"), groups) == affinity


@pytest.mark.parametrize(("usable", "whole"), [(0.2, 1), (1.0, 1), (1.5, 2), (4, 4)])
def test_part_of_a_cpu_counts_as_one(monkeypatch: pytest.MonkeyPatch, usable: float, whole: int) -> None:
    monkeypatch.setattr(cpus, "usable_cpus", lambda: usable)
    assert cpus.whole_cpus() == whole
