"""A fault of a machine comes with the next step, and fails only what needs the faulty part."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from baichuan2_tpu.doctor import Finding, Host, Report, examine
from baichuan2_tpu.shapes import shape_config
from doubles.recorded_machine import HOST, MACHINES, RecordedMachine, copy_machine
from models.bundle_manifest import bundle_manifest
from models.tiny_bundle import write_tiny_checkpoint

STATUSES = {"pass", "warn", "fail", "info"}


def by_name(report: Report) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings}


def change_files(name: str, to: Path, files: dict[str, str]) -> RecordedMachine:
    """Return a recorded machine with other contents of some files."""
    tree = copy_machine(name, to)
    for path, content in files.items():
        (tree / path).write_text(content + "\n")
    return RecordedMachine(tree)


def change_record(name: str, to: Path, **record: Any) -> RecordedMachine:
    """Return a recorded machine with other rights."""
    tree = copy_machine(name, to)
    path = tree / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | record))
    return RecordedMachine(tree)


def write_bundle(folder: Path, **changes: Any) -> str:
    folder.mkdir()
    bundle_manifest(**changes).write(folder)
    return str(folder)


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return write_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["pcie", "soc", "none"])
def test_a_machine_that_is_well_fails_nothing(name: str) -> None:
    report = examine(RecordedMachine(MACHINES / name), HOST)
    assert report.is_ok
    assert all(finding.status in ("pass", "info") for finding in report.findings)


def test_json_is_one_object_of_plain_values() -> None:
    report = json.loads(json.dumps(examine(RecordedMachine(MACHINES / "soc_broken"), HOST).to_json()))
    assert set(report) == {"model", "is_ok", "findings"}
    assert report["is_ok"] is False
    for finding in report["findings"]:
        assert set(finding) == {"name", "status", "value", "allowed", "next_step"}
        assert finding["status"] in STATUSES
        assert all(isinstance(line, str) for line in finding["next_step"])


def test_group_that_may_use_a_node_is_named(tmp_path: Path) -> None:
    node = {"rights": "crw-rw----", "owner": "root", "group": "video", "is_usable": False}
    machine = change_record(
        "soc", tmp_path, nodes={"/dev/bm-tpu0": node, "/dev/ion": node | {"is_usable": True}}
    )
    nodes = [finding for finding in examine(machine, HOST).findings if finding.name == "node"]
    assert [node.status for node in nodes] == ["fail", "pass"]
    assert nodes[0].value == "/dev/bm-tpu0 crw-rw---- root:video"
    assert nodes[0].next_step == ("$ sudo usermod -aG video $USER", "then log in again")


def test_node_that_no_group_may_use_wants_other_rights(tmp_path: Path) -> None:
    node = {"rights": "crw-------", "owner": "root", "group": "root", "is_usable": False}
    machine = change_record("soc", tmp_path, nodes={"/dev/bm-tpu0": node, "/dev/ion": node})
    findings = [finding for finding in examine(machine, HOST).findings if finding.name == "node"]
    assert findings[0].next_step[0] == "$ sudo chmod 0666 /dev/bm-tpu0"


def test_missing_node_asks_for_the_driver(tmp_path: Path) -> None:
    findings = by_name(examine(change_record("pcie", tmp_path, nodes={}), HOST))
    assert findings["node"].status == "fail"
    assert findings["node"].next_step[0] == "$ sudo modprobe bmsophon"


def test_old_driver_fails_with_the_least_version(tmp_path: Path) -> None:
    files = {"proc/bmsophon/driver_version": "release version:0.4.9   release date: 20230801-120000"}
    findings = by_name(examine(change_files("pcie", tmp_path, files), HOST))
    assert findings["driver"] == Finding(
        "driver",
        "fail",
        "0.4.9 (SDK V23.07.01)",
        ">= 0.5.1 (SDK V24.04.01)",
        ("install sophon-driver and sophon-libsophon of one SDK, V24.04.01 or newer, then restart",),
    )


def test_old_driver_does_not_fail_a_checkpoint_on_the_cpu(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", 4)
    files = {"proc/bmsophon/driver_version": "release version:0.4.9   release date: 20230801-120000"}
    report = examine(change_files("pcie", tmp_path, files), HOST, model=str(checkpoint))
    assert by_name(report)["driver"].status == "warn"
    assert report.is_ok


def test_driver_and_library_of_two_versions_are_told(tmp_path: Path) -> None:
    files = {"proc/bmsophon/driver_version": "release version:0.5.2   release date: 20250301-120000"}
    finding = by_name(examine(change_files("pcie", tmp_path, files), HOST))["libsophon"]
    assert (finding.status, finding.allowed) == ("warn", "the same version as the driver")
    assert finding.value == "0.5.1 (SDK V24.04.01), but the driver is 0.5.2"


@pytest.mark.parametrize(
    ("sail", "status"),
    [("", "info"), ("3.8.0", "warn"), ("3.9.1", "pass"), ("of an unknown version", "warn")],
)
def test_sail_is_judged_by_its_version(sail: str, status: str) -> None:
    host = dataclasses.replace(HOST, sail=sail)
    finding = by_name(examine(RecordedMachine(MACHINES / "soc"), host))["sail"]
    assert finding.status == status
    assert finding.allowed == ">= 3.9.1"


def test_another_chip_than_the_models_fails(tmp_path: Path, bundle: str) -> None:
    machine = change_files("pcie", tmp_path, {"proc/bmsophon/card0/chipid": "0x1684"})
    finding = by_name(examine(machine, HOST, model=bundle))["tpu"]
    assert (finding.status, finding.allowed) == ("fail", "bm1684x")
    assert finding.next_step == ("use a machine with a bm1684x",)


def test_a_model_for_two_devices_fails(tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "two", devices=2)
    finding = by_name(examine(RecordedMachine(MACHINES / "pcie"), HOST, model=model))["tpu"]
    assert (finding.status, finding.next_step) == ("fail", ("compile it again with --devices 1",))


def test_a_bundle_without_a_tpu_fails_with_a_way_out(bundle: str) -> None:
    report = examine(RecordedMachine(MACHINES / "none"), HOST, model=bundle)
    assert by_name(report)["tpu"].status == "fail"
    assert "--engine simulator" in by_name(report)["tpu"].next_step[0]
    assert not report.is_ok


def test_a_fault_of_the_card_fails(tmp_path: Path) -> None:
    finding = by_name(
        examine(change_files("pcie", tmp_path, {"proc/bmsophon/card0/bmsophon0/status": "Fault"}), HOST)
    )["state"]
    assert (finding.status, finding.value) == ("fail", "Fault, 41 °C, 0 % in use")
    # --recovery without --dev named no device.
    assert finding.next_step[0] == "$ bm-smi --dev=0x0 --recovery"


@pytest.mark.parametrize(
    ("path", "content", "value"),
    [
        ("proc/bmsophon/card0/bmsophon0/chip_temp", "85 C", "Active, 85 °C, 0 % in use"),
        (
            "sys/class/bm-sophon/bm-sophon0/device/npu_usage",
            "usage:97 avusage:50",
            "Active, 41 °C, 97 % in use",
        ),
    ],
)
def test_heat_and_use_are_warnings(path: str, content: str, value: str, tmp_path: Path) -> None:
    finding = by_name(examine(change_files("pcie", tmp_path, {path: content}), HOST))["state"]
    assert (finding.status, finding.value) == ("warn", value)


@pytest.mark.parametrize(("width", "status"), [("x16", "pass"), ("x4", "warn"), ("nonsense", "warn")])
def test_a_narrow_link_is_told(width: str, status: str, tmp_path: Path) -> None:
    machine = change_files("pcie", tmp_path, {"proc/bmsophon/card0/bmsophon0/pcie_link_width": width})
    assert by_name(examine(machine, HOST))["link"].status == status


def test_regions_that_need_root_are_asked_for_with_sudo(tmp_path: Path) -> None:
    machine = change_record("soc", tmp_path, needs_root=["/sys/kernel/debug"])
    finding = by_name(examine(machine, HOST))["tpu memory"]
    assert (finding.status, finding.next_step) == ("warn", ("$ sudo $(which baichuan2) doctor",))
    assert finding.value == "/sys/kernel/debug/ion/bm_npu_heap_dump/summary can be read by root only"


def test_one_region_that_cannot_be_read_is_told_beside_the_others(tmp_path: Path) -> None:
    machine = change_files("soc", tmp_path, {"sys/kernel/debug/ion/bm_vpp_heap_dump/summary": "garbage"})
    finding = by_name(examine(machine, HOST))["tpu memory"]
    assert finding.status == "warn"
    assert finding.value.startswith(
        "npu 7615 + vpu 3072 = 10687 MiB, 10687 MiB free; /sys/kernel/debug/ion/bm_vpp"
    )


def test_too_little_memory_gives_the_commands_for_this_board(tmp_path: Path) -> None:
    # 9300 MiB and 0.5 of buffers, 512 for the regions' ends and 137.9 that are in use: 9951, 881 above 9070.
    model = write_bundle(
        tmp_path / "large",
        device_bytes=9300 << 20,
        model=shape_config("baichuan2-7b", 8),
        bits=8,
        head_rows=(1,),
    )
    finding = by_name(examine(RecordedMachine(MACHINES / "soc_broken"), HOST, model=model))["model fits"]
    assert finding.status == "fail"
    assert finding.allowed == "<= 8932 MiB free"
    assert finding.value == ("this model needs 9301 MiB at context 128 (the vendor asks for 9216 at 8 bits)")
    assert "$ ./memory_edit.sh -c -npu 4831 -vpu 2048 -vpp 3072" in finding.next_step
    assert finding.next_step[-2:] == (
        "$ sudo cp /data/memedit/memory_edit/emmcboot.itb /boot/emmcboot.itb && sync",
        "$ sudo reboot",
    )


def test_memory_that_fits_but_for_the_regions_ends_is_a_warning(tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "close", device_bytes=8700 << 20)
    finding = by_name(examine(RecordedMachine(MACHINES / "soc_broken"), HOST, model=model))["model fits"]
    assert finding.status == "warn"
    assert finding.next_step[0] == "divide the memory again:"


def test_a_board_that_is_too_small_says_so(tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "huge", device_bytes=15000 << 20)
    finding = by_name(examine(RecordedMachine(MACHINES / "soc_broken"), HOST, model=model))["model fits"]
    assert finding.next_step == (
        "this board gives at most 14782 MiB (-npu 7615 -vpu 3071 -vpp 4096); "
        "compile with fewer bits, fewer --rows or a shorter --context",
    )


def test_a_card_cannot_divide_its_memory_anew(tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "huge", device_bytes=15000 << 20)
    finding = by_name(examine(RecordedMachine(MACHINES / "pcie"), HOST, model=model))["model fits"]
    assert (finding.status, finding.next_step) == (
        "fail",
        ("compile with fewer bits, fewer --rows or a shorter --context",),
    )


def test_programs_that_hold_the_memory_are_to_end_first(tmp_path: Path) -> None:
    summary = (
        "[0] npu heap size:7985954816 bytes, used:7000000000 bytes\tusage rate:88%, memory usage peak 0 bytes"
    )
    machine = change_files("soc", tmp_path, {"sys/kernel/debug/ion/bm_npu_heap_dump/summary": summary})
    model = write_bundle(tmp_path / "seven", device_bytes=8000 << 20)
    finding = by_name(examine(machine, HOST, model=model))["model fits"]
    assert finding.next_step == ("end the programs that hold 6676 MiB of it: bm-smi lists them",)


def test_what_the_system_loses_is_told(tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "large", device_bytes=12000 << 20)
    finding = by_name(examine(RecordedMachine(MACHINES / "soc_broken"), HOST, model=model))["model fits"]
    # 12000 + 512 + 138 - 9070 = 3580 MiB less of 7.08 GB
    assert finding.next_step[-1] == "it leaves the system 3.33 GB: install Python packages before"


def write_packed_weights(checkpoint: Path) -> None:
    """Write enough to see that the weights are quantised."""
    packed = {"model.layers.0.mlp.down_proj.qweight": np.zeros((1, 1), np.int32)}
    save_file(packed, checkpoint / "model.safetensors")


def test_a_shorter_context_lets_a_checkpoint_fit(tmp_path: Path) -> None:
    checkpoint = tmp_path / "seven"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(shape_config("baichuan2-7b", 8).to_json()))
    write_packed_weights(checkpoint)
    machine = RecordedMachine(MACHINES / "none")
    long, short = (
        by_name(examine(machine, HOST, model=str(checkpoint), context=context))["memory"]
        for context in (None, 16)
    )
    assert (long.status, short.status) == ("fail", "pass")
    assert long.allowed == ">= 9.46 GB for this model at context 4096"
    assert "this container is limited to 8.59 GB" in long.value


@pytest.mark.parametrize("model", ["no/such/place", "nonsense"])
def test_a_model_that_is_not_found_fails_and_the_rest_is_told(model: str) -> None:
    report = examine(RecordedMachine(MACHINES / "soc"), HOST, model=model)
    finding = by_name(report)["model"]
    assert (finding.status, report.is_ok) == ("fail", False)
    assert finding.value == f"'{model}' is neither a path that exists nor a known model"
    assert len(report.findings) > 10


def test_a_known_name_is_not_fetched_for_this() -> None:
    finding = by_name(examine(RecordedMachine(MACHINES / "none"), HOST, model="demo"))["model"]
    assert (finding.status, finding.value) == ("pass", "demo: fetched when it is first used")


def test_a_context_that_was_not_compiled_fails(bundle: str) -> None:
    finding = by_name(examine(RecordedMachine(MACHINES / "soc"), HOST, model=bundle, context=4096))["model"]
    assert finding.status == "fail"
    assert "the bundle was compiled for 128" in finding.value


def test_slow_kernels_are_told_where_the_cpu_is_used(bundle: str) -> None:
    host: Host = dataclasses.replace(HOST, kernels=("scalar",))
    machine = RecordedMachine(MACHINES / "none")
    assert by_name(examine(machine, host))["processor"].status == "warn"
    assert by_name(examine(machine, host, model=bundle))["processor"].status == "info"


@pytest.mark.parametrize(
    ("machine", "kernels"),
    [
        ("none", "avx512_vnni"),
        ("none", "avx_vnni"),
        ("none", "avx2"),
        ("soc", "neon"),
        ("neoverse_n1", "neon_dotprod"),
        ("neoverse_v1", "neon_i8mm"),
    ],
)
def test_kernels_of_full_speed_pass(machine: str, kernels: str) -> None:
    host: Host = dataclasses.replace(HOST, kernels=(kernels, "scalar"))
    assert by_name(examine(RecordedMachine(MACHINES / machine), host))["processor"].status == "pass"


def test_a_build_without_the_kernels_of_this_processor_is_told(bundle: str) -> None:
    host: Host = dataclasses.replace(HOST, kernels=("neon_dotprod", "neon", "scalar"))
    machine = RecordedMachine(MACHINES / "neoverse_v1")
    finding = by_name(examine(machine, host))["processor"]
    assert finding.status == "warn"
    assert finding.next_step == ("install the package again with g++ 10 or newer, which knows i8mm",)
    assert by_name(examine(machine, host, model=bundle))["processor"].status == "info"


def test_a_full_disk_is_told() -> None:
    host = dataclasses.replace(HOST, cache_free_bytes=10**9)
    finding = by_name(examine(RecordedMachine(MACHINES / "none"), host))["disk"]
    assert finding.status == "warn"
    assert "XDG_CACHE_HOME" in finding.next_step[0]


def test_an_embedding_that_does_not_stay_in_memory_is_told(tmp_path: Path) -> None:
    machine = change_files("soc", tmp_path, {"proc/meminfo": "MemTotal: 1500000 kB\nMemAvailable: 900000 kB"})
    model = write_bundle(tmp_path / "seven", model=shape_config("baichuan2-7b", 4))
    finding = by_name(examine(machine, HOST, model=model))["memory"]
    assert (finding.status, finding.allowed) == ("warn", ">= 1.03 GB available for the embedding")


def test_a_card_without_its_driver_is_told_by_what_is_missing(tmp_path: Path) -> None:
    tree = copy_machine("pcie", tmp_path)
    shutil.rmtree(tree / "proc/bmsophon")
    findings = by_name(examine(RecordedMachine(tree), HOST))
    assert findings["tpu"].value.startswith(
        "unknown chip (/proc/bmsophon/card0/chipid is missing), PCIe card at"
    )
    assert findings["driver"].value == "/proc/bmsophon/driver_version is missing"
    assert findings["tpu memory"].value == "/proc/bmsophon/card0/bmsophon0/heap is missing"


def test_memory_that_others_hold_is_a_warning_on_the_cpu(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", 4)
    machine = change_files("none", tmp_path, {"proc/meminfo": "MemTotal: 1000000 kB\nMemAvailable: 100 kB"})
    finding = by_name(examine(machine, HOST, model=str(checkpoint)))["memory"]
    assert (finding.status, finding.next_step) == ("warn", ("end other programs before you load the model",))


def test_limits_that_are_guessed_are_told_so(tmp_path: Path) -> None:
    machine = change_files(
        "soc_broken", tmp_path, {"proc/device-tree/memory/reg": "odd", "proc/meminfo": "odd"}
    )
    model = write_bundle(tmp_path / "large", device_bytes=9300 << 20)
    steps = by_name(examine(machine, HOST, model=model))["model fits"].next_step
    assert steps[0].startswith("divide the memory again, if memory_edit.sh -p allows them")
    assert steps[-1] == "$ sudo reboot"


def test_a_checkpoint_on_a_box_is_told_what_it_would_take_compiled(tmp_path: Path) -> None:
    checkpoint = tmp_path / "thirteen"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(shape_config("baichuan2-13b", 8).to_json()))
    write_packed_weights(checkpoint)
    report = examine(RecordedMachine(MACHINES / "soc"), HOST, model=str(checkpoint), context=512)
    finding = by_name(report)["model fits"]
    assert finding.status == "warn"
    assert finding.value.startswith("compiled, this model would need about ")
