"""The performance table names what it ran on, and has the vendor's columns."""

from pathlib import Path

import pytest

from baichuan2_tpu.bench import PerformanceRow, performance_table
from baichuan2_tpu.bench.table import chip_platform, processor_platform


def machine(root: Path, **files: str) -> Path:
    """Write the files of a recorded machine: cpuinfo, model."""
    places = {"cpuinfo": root / "proc" / "cpuinfo", "model": root / "proc" / "device-tree" / "model"}
    for name, content in files.items():
        places[name].parent.mkdir(parents=True, exist_ok=True)
        places[name].write_bytes(content.encode())
    return root


def test_a_line_has_the_vendors_columns_and_digits() -> None:
    rows = [
        PerformanceRow("SE7-32", "baichuan2-7b_int4_1dev.bmodel", None, 0.817, 7.603),
        PerformanceRow("AMD EPYC, 2 threads", "demo", 8, 0.02514, 120.7),
    ]
    assert performance_table(rows) == [
        "| platform | model | bits | first token (s) | tokens per second |",
        "|---|---|---|---|---|",
        "| SE7-32 | baichuan2-7b_int4_1dev.bmodel |  | 0.817 | 7.603 |",
        "| AMD EPYC, 2 threads | demo | 8 | 0.025 | 120.700 |",
    ]


def test_a_bar_in_a_name_does_not_break_the_table() -> None:
    line = performance_table([PerformanceRow("a|b", "m", 4, 1, 1)])[-1]
    assert line.startswith("| a/b | m |")


@pytest.mark.parametrize(
    ("files", "threads", "name"),
    [
        ({"cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC\n\nmodel name\t: AMD EPYC\n"}, 2, "AMD EPYC"),
        ({"cpuinfo": "processor\t: 0\nBogoMIPS\t: 100.00\n", "model": "SE7 board\0"}, 8, "SE7 board"),
    ],
)
def test_a_processor_is_named_by_itself_or_by_its_board(
    tmp_path: Path, files: dict[str, str], threads: int, name: str
) -> None:
    assert processor_platform(threads, machine(tmp_path, **files)) == f"{name}, {threads} threads"


def test_a_machine_that_names_nothing_is_called_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert processor_platform(1, tmp_path) == "riscv64, 1 thread"


def test_a_chip_is_named_with_its_board_where_that_is_known(tmp_path: Path) -> None:
    assert chip_platform("bm1684x", "bmrt", is_simulated=False, root=tmp_path) == "BM1684X, bmrt"
    root = machine(tmp_path, model="SE7 board\0")
    assert chip_platform("bm1684x", "sail", is_simulated=False, root=root) == "BM1684X on SE7 board, sail"


def test_a_simulator_is_never_taken_for_a_chip(tmp_path: Path) -> None:
    root = machine(tmp_path, model="SE7 board\0")
    name = chip_platform("bm1684x", "bmrt-simulator", is_simulated=True, root=root)
    assert name == "simulator of BM1684X: not a measure of its speed"
