"""The default number of threads on trees of files as Linux shows them, and under masks and quotas."""

from __future__ import annotations

import os
from collections.abc import Iterable
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


def make_cores(root: Path, cores: list[str], capacities: list[int] | None = None) -> Path:
    """Write the files of processors: ``cores`` has the list of siblings of each processor."""
    files: dict[str, str] = {}
    for number, siblings in enumerate(cores):
        files[f"sys/devices/system/cpu/cpu{number}/topology/core_cpus_list"] = siblings
    for number, capacity in enumerate(capacities or []):
        files[f"sys/devices/system/cpu/cpu{number}/cpu_capacity"] = str(capacity)
    return make_tree(root, files)


def set_mask(monkeypatch: pytest.MonkeyPatch, processors: Iterable[int]) -> None:
    mask = set(processors)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: mask)


EPYC = [f"{number % 64},{number % 64 + 64}" for number in range(128)]
"""64 cores with two threads each; a core's second thread is 64 further."""
CORE_I9 = [f"{number // 2 * 2}-{number // 2 * 2 + 1}" for number in range(16)] + [
    str(number) for number in range(16, 24)
]
"""8 fast cores with two threads each, then 8 small ones: an i9-12900K."""


@pytest.mark.parametrize(
    ("cores", "mask", "threads"),
    [
        (EPYC, range(128), 64),
        (EPYC, range(64), 64),
        (EPYC, range(32, 96), 64),
        (EPYC, [3, 67], 1),
        (EPYC, [3, 67, 4], 2),
        (EPYC, [127], 1),
        (CORE_I9, range(24), 16),
        (CORE_I9, range(16), 8),
        (CORE_I9, range(16, 24), 8),
        (["0"], [0], 1),
        (["0", "1"], [0, 1], 2),
    ],
)
def test_a_core_counts_once_whatever_threads_of_it_are_in_the_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: list[str], mask: Iterable[int], threads: int
) -> None:
    """The threads of a core share its vector units: two workers on one were slower than one."""
    set_mask(monkeypatch, mask)
    assert available_threads(make_cores(tmp_path, cores)) == threads


@pytest.mark.parametrize(
    ("capacities", "mask", "threads"),
    [
        ([1024] * 8, range(8), 8),  # a BM1684X: eight Cortex-A53
        ([406] * 4 + [1024] * 4, range(8), 4),  # four Cortex-A55 beside four A76
        ([406] * 4 + [1024] * 4, range(4), 4),  # only the small ones are in the mask
        ([406] * 4 + [1024] * 4, [0, 7], 1),
        ([325] * 4 + [780] * 3 + [1024], range(8), 4),  # three sizes
    ],
)
def test_cores_below_half_of_the_fastest_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacities: list[int], mask: Iterable[int], threads: int
) -> None:
    set_mask(monkeypatch, mask)
    cores = [str(number) for number in range(len(capacities))]
    assert available_threads(make_cores(tmp_path, cores, capacities)) == threads


def test_siblings_of_older_kernels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_mask(monkeypatch, range(4))
    names = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": str(n % 2) for n in range(4)}
    assert available_threads(make_tree(tmp_path, names)) == 2


def test_a_quota_bounds_the_cores_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_mask(monkeypatch, range(128))
    make_tree(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "800000 100000"})
    assert available_threads(make_cores(tmp_path, EPYC)) == 8
