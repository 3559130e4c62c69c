"""The default number of threads on recorded cgroup trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from baichuan2_tpu.engine.processors import available_threads


@pytest.fixture(autouse=True)
def sixteen_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


def make_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        ("max 100000", 16),
        ("400000 100000", 4),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("6400000 100000", 16),
        ("", 16),
        ("0 0", 16),
    ],
)
def test_a_version_2_quota_bounds_the_threads(tmp_path: Path, quota: str, threads: int) -> None:
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": quota}
    assert available_threads(make_tree(tmp_path, files)) == threads


def test_a_quota_of_a_group_above_counts_too(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user.slice/job.scope",
        "sys/fs/cgroup/user.slice/job.scope/cpu.max": "max 100000",
        "sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
    }
    assert available_threads(make_tree(tmp_path, files)) == 3


@pytest.mark.parametrize(("quota", "threads"), [("-1", 16), ("250000", 3)])
def test_a_version_1_quota_bounds_the_threads(tmp_path: Path, quota: str, threads: int) -> None:
    """The path is the host's: below the mount of a container only its own group is visible."""
    files = {
        "proc/self/cgroup": "5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n0::/",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert available_threads(make_tree(tmp_path, files)) == threads


def test_the_affinity_mask_counts_where_no_cgroup_is_visible(tmp_path: Path) -> None:
    assert available_threads(tmp_path) == 16
