"""Readers understand what the vendor's code writes, and make nothing of anything else, without a crash."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan2_tpu.doctor import Machine, examine
from baichuan2_tpu.doctor import system_files as machine_module
from baichuan2_tpu.doctor.host import (
    HostMemory,
    Processor,
    parse_limit,
    parse_memory,
    parse_processor,
    read_limit,
    read_processor,
)
from baichuan2_tpu.doctor.system_files import Node, Seen
from baichuan2_tpu.doctor.tpu import (
    Link,
    find_tpu,
    parse_celsius,
    parse_chip,
    parse_link,
    parse_thousandths,
    parse_usage,
    parse_version,
    read_libsophon_version,
)
from baichuan2_tpu.doctor.tpu_memory import Region, parse_capacity, parse_heaps, parse_region, read_regions
from doubles.recorded_machine import HOST, MACHINES, RecordedMachine, copy_machine

PARSERS: list[tuple[Callable[[str], Any], Callable[[Any], bool]]] = [
    (parse_capacity, lambda gib: 0 <= gib <= 999),
    (parse_celsius, lambda degrees: -55 <= degrees <= 150),
    (parse_thousandths, lambda degrees: -55 <= degrees <= 150),
    (parse_chip, lambda chip: chip in ("bm1684", "bm1684x", "bm1688")),
    (parse_heaps, lambda heaps: all(heap.total > 0 for heap in heaps) and len(heaps) > 0),
    (parse_region, lambda sizes: sizes[0] >= sizes[1] >= 0),
    (parse_limit, lambda limit: limit >= 0),
    (parse_memory, lambda memory: memory.total >= 0 and memory.available >= 0),
    (parse_processor, lambda processor: processor.threads > 0),
    (parse_usage, lambda percent: 0 <= percent <= 100),
    (parse_version, lambda version: len(version) == 3 and min(version) >= 0),
    (lambda text: parse_link(text, "x16"), lambda link: link.generation > 0 and link.lanes == 16),
    (lambda text: parse_link("gen3", text), lambda link: link.generation == 3 and link.lanes > 0),
]
"""Each with what holds for any value that it returns."""
PIECES = [
    "usage:",
    "avusage",
    "heap size:",
    " bytes, used:",
    "heap0, size = 0x",
    "gen",
    "x",
    " C",
    "release version:",
]
PIECES += [
    "MemTotal:",
    " kB\n",
    "processor\t: ",
    "flags\t\t: ",
    "0x1684x",
    "bm",
    ".",
    "-",
    "\n",
    "٣",
    "99999999999999999999",
]
ODD_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    st.lists(st.one_of(st.sampled_from(PIECES), st.integers().map(str)), max_size=12).map("".join),
)


@pytest.mark.parametrize(("parse", "is_plausible"), PARSERS)
@given(text=ODD_TEXTS)
def test_parsers_make_nothing_or_a_plausible_value_of_any_text(
    parse: Callable[[str], Any], is_plausible: Callable[[Any], bool], text: str
) -> None:
    value = parse(text)
    assert value is None or is_plausible(value)


class OddMachine(RecordedMachine):
    """A recorded machine, one file of which holds something else."""

    def __init__(self, root: Path, path: str, odd: bytes) -> None:
        super().__init__(root)
        self._odd = Seen(path, odd)

    def read_bytes(self, path: str) -> Seen[bytes]:
        return self._odd if path == self._odd.path else super().read_bytes(path)


def recorded_files(name: str) -> list[str]:
    root = MACHINES / name
    return sorted(f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file())


FILES = [(name, path) for name in ("soc", "pcie") for path in recorded_files(name)]


@given(file=st.sampled_from(FILES), odd=st.one_of(st.binary(max_size=300), ODD_TEXTS.map(str.encode)))
def test_no_content_of_any_file_stops_a_diagnosis(file: tuple[str, str], odd: bytes) -> None:
    name, path = file
    report = examine(OddMachine(MACHINES / name, path, odd), HOST)
    assert len(report.findings) >= 10


@pytest.mark.parametrize("name", ["soc", "pcie"])
def test_a_diagnosis_does_without_every_file(name: str, tmp_path: Path) -> None:
    tree = copy_machine(name, tmp_path)
    for path in sorted(tree.rglob("*")):
        is_spared = path.name == "record.json" or "/dev/" in str(path) or path.is_dir()
        if not is_spared:
            path.unlink()
    findings = {finding.name: finding for finding in examine(RecordedMachine(tree), HOST).findings}
    assert findings["system"].value.startswith("/etc/os-release is missing")
    assert findings["driver"].status == "warn"
    assert findings["libsophon"].status == "fail"
    assert findings["tpu memory"].status == "warn"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("release version:0.5.1   release date: 20240717-103602", (0, 5, 1)),
        ("/opt/sophon/libsophon-0.4.9-LTS", (0, 4, 9)),
        ("0.5.2", (0, 5, 2)),
        ("1682 not support", None),
        ("1.2.3.4", None),
        ("0.5", None),
    ],
)
def test_versions_have_three_numbers(text: str, version: tuple[int, ...] | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("text", "chip"),
    [
        ("0x1684x", "bm1684x"),
        ("0x1686", "bm1684x"),
        ("bm1684x_se7_v1_mini.dts", "bm1684x"),
        ("BM1688_evb.dtb", "bm1688"),
        ("0x1684", "bm1684"),
        ("0x16840", None),
        ("", None),
    ],
)
def test_chips_go_by_several_names(text: str, chip: str | None) -> None:
    assert parse_chip(text) == chip


def test_region_is_read_off_the_first_lines_of_a_summary() -> None:
    text = "Summary:\n[0] npu heap size:7717519360 bytes, used:4096 bytes  usage rate:0%, memory usage peak 0"
    assert parse_region(text) == (7_717_519_360, 4096)
    assert parse_region("heap size:10 bytes, used:11 bytes") is None


def test_empty_heaps_of_a_card_are_left_out() -> None:
    text = "heap0, size = 0x1000, start_addr =0x1\nheap1, size = 0x0, start_addr =0x0"
    assert parse_heaps(text) == (Region("heap0", 4096, None),)
    assert parse_heaps("heap0, size = 0x0, start_addr =0x0") is None


def test_capacity_of_a_card_is_the_sum_at_the_end() -> None:
    assert parse_capacity("4g, 4g, 4g, 4g, 16g") == 16
    assert parse_capacity("16g") is None


def test_temperatures_out_of_this_world_are_odd() -> None:
    assert (parse_celsius("45 C"), parse_thousandths("45400"), parse_thousandths("-1000")) == (45, 45, -1)
    assert (parse_celsius("N/A"), parse_celsius("9999 C"), parse_thousandths("4540000")) == (None, None, None)


def test_use_is_written_in_two_ways() -> None:
    assert parse_usage("usage:3 avusage:1") == parse_usage('"usage": 3, "avusage": 1') == 3
    assert parse_usage("usage:101 avusage:1") is None


def test_link_has_generation_and_lanes() -> None:
    assert parse_link("gen3", "x8") == Link(3, 8)
    assert parse_link("gen0", "x8") is None


def test_memory_is_counted_in_bytes() -> None:
    assert parse_memory("MemTotal: 2 kB\nMemFree: 1 kB") == HostMemory(2048, 1024)
    assert parse_memory("MemFree: 1 kB") is None


def test_the_smaller_limit_of_a_container_counts(tmp_path: Path) -> None:
    assert read_limit(RecordedMachine(MACHINES / "none")) == 8 << 30
    assert read_limit(RecordedMachine(MACHINES / "soc")) is None
    assert read_limit(Machine(tmp_path)) is None


def test_processor_without_a_name_is_told_by_its_maker() -> None:
    text = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41"
    assert parse_processor(text) == Processor("Arm", 1, ("asimd",))
    assert parse_processor(text.replace("0x41", "0x61")) == Processor("Apple", 1, ("asimd",))


@pytest.mark.parametrize(
    ("name", "model", "instructions"),
    [
        ("neoverse_n1", "Arm Neoverse N1", ("asimd", "asimddp", "fphp")),
        ("neoverse_v1", "Arm Neoverse V1", ("asimd", "asimddp", "i8mm", "fphp")),
    ],
)
def test_arm_processor_is_named_by_its_part(name: str, model: str, instructions: tuple[str, ...]) -> None:
    processor = read_processor(RecordedMachine(MACHINES / name)).value
    assert processor is not None
    assert (processor.model, processor.instructions) == (model, instructions)


def test_a_card_is_found_on_the_bus_before_its_driver_is_there(tmp_path: Path) -> None:
    tree = copy_machine("pcie", tmp_path)
    for path in tree.glob("dev/*"):
        path.unlink()
    tpu = find_tpu(RecordedMachine(tree))
    assert (tpu.kind, tpu.pci, tpu.count) == ("pcie", "0000:03:00.0", 0)


def test_another_device_of_a_card_has_files_of_its_own() -> None:
    tpu = find_tpu(RecordedMachine(MACHINES / "pcie"), 2)
    assert (tpu.node, tpu.proc, tpu.count) == ("/dev/bm-sophon2", "/proc/bmsophon/card0/bmsophon2", 3)
    assert read_regions(RecordedMachine(MACHINES / "pcie"), tpu).total == 14679 << 20


def test_a_libsophon_link_to_elsewhere_is_told(tmp_path: Path) -> None:
    tree = copy_machine("soc", tmp_path)
    link = tree / "opt/sophon/libsophon-current"
    link.unlink()
    link.symlink_to("/home/linaro/mine")
    assert read_libsophon_version(RecordedMachine(tree)).problem == "points to '/home/linaro/mine'"


def test_every_thread_of_a_large_machine_is_counted(tmp_path: Path) -> None:
    # 64 KiB were read, and 56 of 128 threads counted.
    flags = "avx2 fma f16c " + "x" * 1400
    text = "".join(f"processor\t: {n}\nmodel name\t: Large\nflags\t\t: {flags}\n\n" for n in range(1024))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text)
    processor = read_processor(Machine(tmp_path)).value
    assert processor is not None
    assert processor.threads == 1024


def test_a_real_node_is_described() -> None:
    seen = Machine().read_node("/dev/null").value
    assert isinstance(seen, Node)
    assert seen.rights.startswith("crw")
    assert seen.is_usable


def test_what_is_no_node_or_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x" * 50)
    machine = Machine(tmp_path)
    assert machine.read_node("/file").problem == "is not a device node"
    assert machine.read_node("/none").problem == "is missing"
    assert machine.read_bytes("/folder").problem == "cannot be read (Is a directory)"
    assert machine.read_bytes("/file/below").problem == "is missing"
    assert machine.parse("/file", lambda _: None).explanation == f"/file contains '{'x' * 40}'…"
    assert machine.read_link("/file").problem.startswith("cannot be read")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_root_is_told(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o000)
    assert Machine(tmp_path).read_bytes("/secret").problem == "can be read by root only"


def test_devices_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        (tmp_path / f"bm-sophon{number}").touch()
    assert Machine(tmp_path).find("/bm-sophon*") == ["/bm-sophon0", "/bm-sophon2", "/bm-sophon10"]


def test_users_without_a_name_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(machine_module.pwd, "getpwuid", refuse)
    monkeypatch.setattr(machine_module.grp, "getgrgid", refuse)
    seen = Machine().read_node("/dev/null").value
    assert seen is not None
    assert seen.owner.isdecimal()
    assert seen.group.isdecimal()
