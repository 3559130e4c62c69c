"""The sizes for memory_edit.sh, against sums done by hand and limits that the tool prints on a real board."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan2_tpu.doctor.tpu_memory import MIB, Layout, Limits, parse_ranges, plan_layout, read_limits
from doubles.recorded_machine import MACHINES, RecordedMachine, copy_machine

FIRST_DAY = Layout(3950, 2048, 3072)
SE7 = Limits(Layout(7615, 3071, 4096), is_read=True)


def test_limits_of_a_16_gb_box_are_those_that_the_tool_prints() -> None:
    # 2 x 4096 - (64 + 512 + 1) = 7615; 4096 - 1024 - 1 = 3071; 4096
    assert read_limits(RecordedMachine(MACHINES / "soc")) == SE7


def test_firmware_of_the_vpu_above_the_kernel_takes_128_mib_more(tmp_path: Path) -> None:
    tree = copy_machine("soc", tmp_path)
    ramoops = tree / "proc/device-tree/reserved-memory/ramoops_mem/reg"
    ramoops.write_bytes(struct.pack(">QQ", 0x3_1000_0000, MIB))
    assert read_limits(RecordedMachine(tree)).largest == Layout(7615, 2943, 4096)


def test_three_ranges_are_those_of_a_12_gb_box(tmp_path: Path) -> None:
    tree = copy_machine("soc", tmp_path)
    reg = tree / "proc/device-tree/memory/reg"
    reg.write_bytes(b"".join(struct.pack(">QQ", start << 32, 1 << 32) for start in (1, 3, 4)))
    assert read_limits(RecordedMachine(tree)).largest == Layout(4096 - 577, 3071, 4096)


@pytest.mark.parametrize("cells", [b"", b"1234567", bytes(16), bytes(64), b"\xff" * 80])
def test_a_device_tree_that_is_not_as_known_gives_the_usual_limits(cells: bytes, tmp_path: Path) -> None:
    tree = copy_machine("soc", tmp_path)
    (tree / "proc/device-tree/memory/reg").write_bytes(cells)
    assert read_limits(RecordedMachine(tree)) == Limits(SE7.largest, is_read=False)


def test_a_tree_without_reserved_memory_gives_the_usual_limits(tmp_path: Path) -> None:
    tree = copy_machine("soc", tmp_path)
    for name in ("armfw_mem", "arm_mem", "smmu_mem"):
        (tree / f"proc/device-tree/reserved-memory/{name}/reg").unlink()
    assert not read_limits(RecordedMachine(tree)).is_read


@pytest.mark.parametrize(
    ("need_mib", "planned"),
    [
        (9070, FIRST_DAY),  # 3950 + 2048 + 3072
        (9216, Layout(4096, 2048, 3072)),  # 146 more
        (12735, Layout(7615, 2048, 3072)),  # npu at its end
        (13000, Layout(7615, 2048, 3337)),  # 265 more of vpp
        (14000, Layout(7615, 2289, 4096)),  # vpp at its end, 241 more of vpu
        (14782, Layout(7615, 3071, 4096)),
        (14783, None),
    ],
)
def test_regions_grow_by_what_is_short(need_mib: int, planned: Layout | None) -> None:
    assert plan_layout(FIRST_DAY, SE7, need_mib * MIB) == planned


def test_a_started_mebibyte_counts_whole() -> None:
    assert plan_layout(FIRST_DAY, SE7, 9216 * MIB - MIB + 1) == Layout(4096, 2048, 3072)


def test_a_region_above_its_limit_is_left_as_it_is() -> None:
    """An older memory_edit.sh allowed one MiB more of vpu; nothing is taken away."""
    assert plan_layout(Layout(7615, 3072, 3072), SE7, 13800 * MIB) == Layout(7615, 3072, 3113)


@given(st.tuples(*[st.integers(0, 8192)] * 3), st.integers(0, 20_000))
def test_a_plan_holds_what_is_needed_and_takes_nothing_away(
    sizes: tuple[int, int, int], need_mib: int
) -> None:
    now = Layout(*sizes)
    planned = plan_layout(now, SE7, need_mib * MIB)
    if planned is None:
        grown = [max(size, most) for size, most in zip(sizes, (7615, 3071, 4096), strict=True)]
        assert sum(grown) < need_mib
        return
    assert planned.total == max(now.total, need_mib)
    assert (planned.npu, planned.vpu, planned.vpp) >= sizes or planned == now
    assert min(planned.npu - now.npu, planned.vpu - now.vpu, planned.vpp - now.vpp) >= 0


@given(st.binary(max_size=200))
def test_cells_are_ranges_or_odd(cells: bytes) -> None:
    ranges = parse_ranges(cells)
    assert (ranges is None) == (len(cells) == 0 or len(cells) % 16 != 0)
    assert ranges is None or len(ranges) == len(cells) // 16
