"""libbmrt on the simulator: what it would abort on is refused, and a process around it stays clean."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baichuan2_tpu.bmodel.header import BmodelFile
from baichuan2_tpu.engine.device import bmrt
from baichuan2_tpu.engine.device.bmrt import BmrtDevice
from baichuan2_tpu.engine.device.bmrt_library import BmrtLibrary
from baichuan2_tpu.errors import ArtifactError, BackendError, BackendUnavailable, DeviceError
from baichuan2_tpu.manifest import Manifest
from baichuan2_tpu.toolchain import find_simulator
from models.tiny_bundle import TinyBundles

RUN = """
import sys
from functools import partial
from pathlib import Path
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.device.bmrt import BmrtDevice
from baichuan2_tpu.engine.compiled.open_bundle import open_bundle
simulator, folder = map(Path, sys.argv[1:])
engine = open_bundle(folder, lambda path, size: BmrtDevice(path, simulator=simulator, reserve_bytes=size))
print(engine.forward([Chunk(engine.open_sequence(), [1, 2, 3])])[0].shape, sys.float_info.min / 2 > 0)
"""
"""Run in a process of its own, which ends without closing the engine. It also looks at a subnormal number."""

FIRMWARE_BYTES = 5_600_000
"""Every bmodel carries it; model_tool does not count it as device memory, the header's reader does."""


@pytest.fixture(scope="module")
def bmodel(tiny_bundle: TinyBundles) -> Path:
    folder = tiny_bundle(4).folder
    return folder / Manifest.read(folder).bmodel


def test_a_process_keeps_its_output_its_arithmetic_and_a_clean_end(bmodel: Path) -> None:
    # The simulator prints from C, makes its caller flush subnormal numbers to zero, and crashed at the end.
    command = [sys.executable, "-c", RUN, str(find_simulator()), str(bmodel.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(1, 448) True\n"), done.stderr
    assert done.stderr == "", "lines of the library hid everything else, one for every launch"


def test_the_header_tells_chip_and_memory(bmodel: Path) -> None:
    found = BmodelFile.read(bmodel)
    device_bytes = Manifest.read(bmodel.parent).device_bytes
    assert (found.chip, found.devices) == ("bm1684x", 1)
    assert found.device_bytes == pytest.approx(device_bytes + FIRMWARE_BYTES, rel=0.05)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_bmodel_cut_anywhere_is_refused(bmodel: Path, tmp_path: Path, share: float) -> None:
    length = bmodel.stat().st_size
    short = tmp_path / "short.bmodel"
    short.write_bytes(bmodel.read_bytes()[: min(int(length * share), length - 1)])
    with pytest.raises(ArtifactError, match=r"is not a bmodel|has \d+ bytes, its"):
        BmodelFile.read(short)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(64, 8000), value=st.integers(0, 255))
def test_a_damaged_description_is_refused_or_harmless(
    bmodel: Path, tmp_path: Path, position: int, value: int
) -> None:
    data = bytearray(bmodel.read_bytes())
    data[position] = value
    damaged = tmp_path / "damaged.bmodel"
    damaged.write_bytes(data)
    try:
        assert BmodelFile.read(damaged).devices >= 1
    except ArtifactError as error:
        assert "damaged.bmodel" in str(error)  # noqa: PT017 - either may happen


def test_a_bmodel_for_another_chip_is_refused(bmodel: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bmodel"
    other.write_bytes(bmodel.read_bytes().replace(b"BM1684X", b"BM1688X"))
    with pytest.raises(ArtifactError, match="was compiled for bm1688x, the device is a bm1684x"):
        BmrtDevice(other, simulator=find_simulator())


def test_a_machine_without_the_vendors_libraries_is_told_what_to_install(
    bmodel: Path, tmp_path: Path
) -> None:
    with pytest.raises(BackendUnavailable, match=r"libbmlib\.so\.0: not found; install libsophon 0\.5\.1"):
        BmrtDevice(bmodel, libraries=tmp_path)


def test_a_second_copy_of_the_libraries_in_one_process_is_refused(bmodel: Path, tmp_path: Path) -> None:
    BmrtDevice(bmodel, simulator=find_simulator()).close()
    for name in ("libbmlib.so.0", "libbmrt.so"):
        shutil.copyfile(find_simulator() / name, tmp_path / name)
    with pytest.raises(BackendUnavailable, match="another copy is in use in this process already"):
        BmrtDevice(bmodel, libraries=tmp_path)


def test_devices_may_be_opened_one_after_the_other_and_together(bmodel: Path) -> None:
    simulator = find_simulator()
    with BmrtDevice(bmodel, simulator=simulator) as first, BmrtDevice(bmodel, simulator=simulator) as second:
        assert first.nets == second.nets
    with BmrtDevice(bmodel, simulator=simulator) as third:
        assert third.chip == "bm1684x"


def test_memory_beside_the_nets_is_counted_before_loading(bmodel: Path) -> None:
    with pytest.raises(
        BackendError, match=r"needs [\d,.]+ MB of device memory, 4,295.0 MB of 4,295.0 MB are free"
    ):
        BmrtDevice(bmodel, simulator=find_simulator(), reserve_bytes=1 << 33)


FAULTS: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "no driver": (
        {"dev_getcount": 2, "dev_query": 7},
        BackendUnavailable,
        r"shows no TPU 0 \(/dev/bm-sophon0 or /dev/bm-tpu0\)",
    ),
    "device in use": ({"dev_request": 7}, BackendUnavailable, r"device 0 cannot be opened: busy \(7\)"),
    "chip unknown": ({"get_chipid": 2}, DeviceError, "does not report its chip"),
    "no runtime": ({"create": None}, DeviceError, "could not start on the device"),
    "not loaded": ({"load_bmodel": False}, DeviceError, "libbmrt could not load it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_while_opening_is_told_and_everything_given_back(
    fault: str, bmodel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, kind, message = FAULTS[fault]
    opened: list[int] = []

    class Faulty(BmrtLibrary):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            real_request, real_free = self.dev_request, self.dev_free
            self.dev_request = lambda *them: opened.append(1) or real_request(*them)
            self.dev_free = lambda *them: opened.append(-1) or real_free(*them)
            for name, answer in answers.items():
                setattr(self, name, lambda *them, answer=answer: answer)

    monkeypatch.setattr(bmrt, "BmrtLibrary", Faulty)
    with pytest.raises(kind, match=message):
        BmrtDevice(bmodel, simulator=find_simulator())
    assert sum(opened) == 0


def test_a_machine_that_cannot_count_its_devices_is_asked_for_the_one(
    bmodel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Uncounted(BmrtLibrary):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            real_query = self.dev_query
            self.dev_getcount = lambda *them: 2
            self.dev_query = lambda number: asked.append(number) or real_query(number)

    monkeypatch.setattr(bmrt, "BmrtLibrary", Uncounted)
    with BmrtDevice(bmodel, simulator=find_simulator()) as device:
        assert "lm_head" in device.nets
    assert asked == [0]


def test_a_fault_while_running_is_told(bmodel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BmrtDevice(bmodel, simulator=find_simulator()) as device:
        head = device.nets["lm_head"].stages[0]
        inputs = [device.allocate(one.dtype, one.shape) for one in head.inputs]
        outputs = [device.allocate(one.dtype, one.shape) for one in head.outputs]
        monkeypatch.setattr(device._library, "launch_tensor_ex", lambda *them: False)
        with pytest.raises(DeviceError, match="libbmrt could not launch stage 0 of lm_head"):
            device.launch("lm_head", 0, inputs, outputs)
        monkeypatch.setattr(device._library, "launch_tensor_ex", lambda *them: True)
        monkeypatch.setattr(device._library, "thread_sync", lambda *them: 3)
        device.launch("lm_head", 0, inputs, outputs)
        with pytest.raises(DeviceError, match=r"running nets up to stage 0 of lm_head failed: timeout \(3\)"):
            device.download(outputs[0])


def test_a_bmodel_for_several_devices_is_refused(bmodel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = BmodelFile.read(bmodel)
    monkeypatch.setattr(BmodelFile, "read", lambda path: replace(one, devices=2))
    with pytest.raises(BackendError, match="is for 2 devices, this engine drives one"):
        BmrtDevice(bmodel, simulator=find_simulator())


def test_more_dimensions_than_a_tensor_has_are_refused(bmodel: Path) -> None:
    with (
        BmrtDevice(bmodel, simulator=find_simulator()) as device,
        pytest.raises(DeviceError, match="9 dimensions are not possible: 8 are"),
    ):
        device.allocate("int32", (1,) * 9)


class _Stat:
    """Answers ``bm_get_stat`` as a SoC does."""

    def __init__(self, status: int, total_mb: int) -> None:
        self.status = status
        self.total_mb = total_mb

    def __call__(self, handle: Any, stat: Any) -> int:
        stat.total_mb, stat.used_mb = self.total_mb, 100
        return self.status


def test_hardware_is_asked_for_its_memory(bmodel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BmrtDevice(bmodel, simulator=find_simulator()) as device:
        monkeypatch.setattr(device, "_total_bytes", 0)
        monkeypatch.setattr(device._library, "get_stat", _Stat(0, 1000))
        memory = device.memory()
        assert memory is not None
        assert (memory.total, memory.free) == (1000 << 20, 900 << 20)
        monkeypatch.setattr(device._library, "get_stat", _Stat(0, 0))
        assert device.memory() is None
        monkeypatch.setattr(device._library, "get_stat", _Stat(2, 1000))
        assert device.memory() is None
