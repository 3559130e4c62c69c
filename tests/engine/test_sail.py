"""Compiled models through SAIL: a double of it that runs real bmodels, and SAIL itself where it is installed.

What every device promises is in ``test_device_contract``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.bmodel.header import BmodelFile
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.compiled.open_bundle import open_bundle
from baichuan2_tpu.engine.device.base import Buffer, Device, DeviceMemory
from baichuan2_tpu.engine.device.bmrt import BmrtDevice
from baichuan2_tpu.engine.device.sail import SailDevice
from baichuan2_tpu.engine.device.simulator import prepare_simulator
from baichuan2_tpu.errors import ArtifactError, BackendError, BackendUnavailable, DeviceError
from baichuan2_tpu.manifest import Manifest
from baichuan2_tpu.toolchain import find_simulator
from doubles.sail_double import install_sail
from doubles.sail_double_tensor import Trap
from models.tiny_bundle import TinyBundles

HEAD = "lm_head"
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def bundle(tiny_bundle: TinyBundles) -> Path:
    return tiny_bundle(4).folder


@pytest.fixture(scope="module")
def bmodel(bundle: Path) -> Path:
    return bundle / Manifest.read(bundle).bmodel


@pytest.fixture
def sail(monkeypatch: pytest.MonkeyPatch, bmodel: Path) -> ModuleType:
    return install_sail(monkeypatch, find_simulator(), total_bytes=64 * MEGABYTE)


@pytest.fixture
def device(sail: ModuleType, bmodel: Path) -> Iterator[SailDevice]:
    with SailDevice(bmodel) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[NDArray[np.float32]]:
    return run_model(bundle, lambda path, _: BmrtDevice(path, simulator=find_simulator()))


def run_model(bundle: Path, open_device: Callable[[Path, int], Device]) -> list[NDArray[np.float32]]:
    """Feed two sequences that take turns, in prompts that fill a stage and that do not, and truncate one."""
    tokens = np.random.default_rng(0).integers(0, 300, 40).tolist()
    with (
        open_bundle(bundle, open_device) as engine,
        engine.open_sequence() as first,
        engine.open_sequence() as second,
    ):
        found = engine.forward([Chunk(first, tokens[:21], 3), Chunk(second, tokens[5:8], 3)])
        for step in range(3):
            found += engine.forward([Chunk(first, [tokens[30 + step]]), Chunk(second, [tokens[33 + step]])])
        first.truncate(9)
        found += engine.forward([Chunk(first, tokens[9:25], 2)])
    return found


@pytest.mark.parametrize("is_soc", [False, True], ids=["card", "soc"])
def test_a_model_gives_the_same_bits_as_through_libbmrt(
    bundle: Path, expected: list[NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch, is_soc: bool
) -> None:
    install_sail(monkeypatch, find_simulator(), is_soc=is_soc)
    found = run_model(bundle, lambda path, reserve: SailDevice(path, reserve_bytes=reserve))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sail_missing_is_told(monkeypatch: pytest.MonkeyPatch, bmodel: Path) -> None:
    monkeypatch.setitem(sys.modules, "sophon", None)
    with pytest.raises(BackendUnavailable, match="SOPHON-SAIL is not installed for this Python"):
        SailDevice(bmodel)


def test_sail_does_not_run_on_the_simulator_unasked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bmodel: Path
) -> None:
    # Both bring a libbmrt.so.1.0, and the linker gives the second what the first has loaded.
    prepare_simulator(find_simulator())
    (tmp_path / "sophon").mkdir()
    (tmp_path / "sophon/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sophon", raising=False)
    monkeypatch.delitem(sys.modules, "sophon.sail", raising=False)
    with pytest.raises(
        BackendUnavailable, match="simulator is in use in this process, and SAIL would run on it"
    ):
        SailDevice(bmodel)


def test_sail_too_old_is_told(sail: ModuleType, monkeypatch: pytest.MonkeyPatch, bmodel: Path) -> None:
    monkeypatch.delattr(sail, "EngineLLM")
    with pytest.raises(BackendUnavailable, match="too old"):
        SailDevice(bmodel)


def test_a_bmodel_for_several_devices_is_refused(
    sail: ModuleType, monkeypatch: pytest.MonkeyPatch, bmodel: Path
) -> None:
    two = replace(BmodelFile.read(bmodel), devices=2)
    monkeypatch.setattr(BmodelFile, "read", lambda path: two)
    with pytest.raises(BackendError, match="is for 2 devices, this engine drives one"):
        SailDevice(bmodel)


def test_another_chip_is_refused(sail: ModuleType, monkeypatch: pytest.MonkeyPatch, bmodel: Path) -> None:
    monkeypatch.setattr(sail.Handle, "get_target", lambda handle: "BM1688")
    with pytest.raises(ArtifactError, match="compiled for bm1684x, the device is a bm1688"):
        SailDevice(bmodel)


def test_a_chip_that_sail_cannot_name_is_taken_for_the_bmodels(
    sail: ModuleType, monkeypatch: pytest.MonkeyPatch, bmodel: Path
) -> None:
    # The functional model has no board name, and get_target returns "Error".
    monkeypatch.setattr(sail.Handle, "get_target", lambda handle: "Error")
    with SailDevice(bmodel) as device:
        assert device.chip == "bm1684x"


def test_a_device_that_sail_cannot_count_is_opened(
    sail: ModuleType, monkeypatch: pytest.MonkeyPatch, bmodel: Path
) -> None:
    def fail() -> int:
        raise sail.SailDeviceError("bm_dev_getcount failed")

    monkeypatch.setattr(sail, "get_available_tpu_num", fail)
    with SailDevice(bmodel) as device:
        assert HEAD in device.nets
    with pytest.raises(BackendUnavailable, match=r"could not open device 1: SailDeviceError: .* driver"):
        SailDevice(bmodel, device=1)


@pytest.mark.parametrize("numbers", [[0, 0, 0], [-1, 0, 0], [10, 11, 0], [10, -1, 0]])
def test_memory_is_unknown_where_the_numbers_make_no_sense(
    sail: ModuleType, monkeypatch: pytest.MonkeyPatch, device: SailDevice, numbers: list[int]
) -> None:
    assert device.memory() == DeviceMemory(64 * MEGABYTE, 64 * MEGABYTE)
    monkeypatch.setattr(sail, "get_dev_stat", lambda number: numbers)
    assert device.memory() is None


def test_memory_that_is_used_up_is_a_device_error(device: SailDevice) -> None:
    with pytest.raises(DeviceError, match="could not allocate 67108865 bytes on the device: RuntimeError"):
        device.allocate("uint8", (64 * MEGABYTE + 1,))


def test_a_buffer_that_sail_would_miscount_is_refused(device: SailDevice) -> None:
    with pytest.raises(DeviceError, match="2147483648 bytes is too large: SAIL counts to 2147483647"):
        device.allocate("float16", (1 << 30,))


@pytest.mark.parametrize("shape", [(), (2, 0), (-1, -4)])
def test_a_shape_that_sail_would_take_in_silence_is_refused(
    device: SailDevice, shape: tuple[int, ...]
) -> None:
    with pytest.raises(DeviceError, match="cannot have the shape"):
        device.allocate("float16", shape)
    with pytest.raises(DeviceError, match="there is no dtype 'int64'"):
        device.allocate("int64", (4,))


@pytest.mark.parametrize("dtype", ["int16", "uint32"])
def test_what_older_versions_upload_as_float32_is_refused(device: SailDevice, dtype: str) -> None:
    with pytest.raises(DeviceError, match=f"SAIL uploads no {dtype}"):
        device.upload(device.allocate(dtype, (4,)), np.zeros(4, dtype))


def test_a_buffer_of_another_sail_device_is_refused(device: SailDevice, bmodel: Path) -> None:
    with SailDevice(bmodel) as other, pytest.raises(DeviceError, match="another device"):
        device.download(other.allocate("float16", (4,)))


def test_outputs_that_overlap_are_refused(device: SailDevice) -> None:
    block = device.nets["block_cache_0"].stages[0]
    inputs = [device.allocate(one.dtype, one.shape) for one in block.inputs]
    states, keys, *others = (device.allocate(one.dtype, one.shape) for one in block.outputs)
    with pytest.raises(DeviceError, match="two outputs of block_cache_0 overlap"):
        device.launch("block_cache_0", 0, inputs, [states, keys, keys, *others[1:]])
    device.launch("block_cache_0", 0, inputs, [states, keys, *others])


def test_a_fault_of_sail_becomes_ours_with_its_cause(
    sail: ModuleType, device: SailDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise sail.SailEngineError("Engine related error!")

    monkeypatch.setattr(sail.EngineLLM, "process", fail)
    inputs, outputs = head_buffers(device)
    with pytest.raises(
        DeviceError, match="SAIL could not run stage 0 of net lm_head: SailEngineError"
    ) as caught:
        device.launch(HEAD, 0, inputs, outputs)
    assert type(caught.value.__cause__) is sail.SailEngineError


def test_two_threads_take_turns(device: SailDevice) -> None:
    """SAIL gave wrong results where two threads ran nets of one engine; the double raises there."""

    def launch(pair: tuple[list[Buffer], list[Buffer]]) -> NDArray[Any]:
        device.launch(HEAD, 0, *pair)
        return device.download(pair[1][0])

    buffers = [head_buffers(device) for _ in range(4)]
    for seed, ((states,), _) in enumerate(buffers):
        device.upload(states, np.random.default_rng(seed).normal(size=states.shape).astype(np.float16))
    alone = [launch(pair) for pair in buffers]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(launch, buffers * 3))
    np.testing.assert_array_equal(together, alone * 3)
    assert not np.array_equal(alone[0], alone[1])


def head_buffers(device: Device) -> tuple[list[Buffer], list[Buffer]]:
    stage = device.nets[HEAD].stages[0]
    return (
        [device.allocate(one.dtype, one.shape) for one in stage.inputs],
        [device.allocate(one.dtype, one.shape) for one in stage.outputs],
    )


def test_the_double_hears_two_threads(sail: ModuleType, bmodel: Path) -> None:
    engine = sail.EngineLLM(str(bmodel), [0])
    with engine._busy, pytest.raises(Trap, match="two threads"):
        engine.process(HEAD, {}, {})


def test_the_double_hears_what_sail_does_not(sail: ModuleType, bmodel: Path) -> None:
    handle, engine = sail.Handle(0), sail.EngineLLM(str(bmodel), [0])
    dtype = engine.get_output_dtype(HEAD, 0)
    shape = engine.get_output_shape(HEAD, 0)

    def tensor(kind: Any, size: list[int]) -> Any:
        return sail.Tensor(handle, size, kind, False, True)

    rows = engine.get_input_shape(HEAD, 0)
    fed, filled = {0: tensor(sail.Dtype.BM_FLOAT16, rows)}, {0: tensor(dtype, shape)}
    engine.process(HEAD, fed | {7: fed[0]}, filled)  # a key too many is ignored
    for inputs, outputs, message in [
        ({}, filled, "segmentation fault"),
        (fed, {0: None}, "segmentation fault"),
        ({0: tensor(sail.Dtype.BM_BFLOAT16, rows)}, filled, "is read as if"),
        (fed, {0: tensor(dtype, [1, 7])}, "are written to a tensor"),
        (fed, {0: dangling_view(tensor(dtype, shape))}, "was freed"),
    ]:
        with pytest.raises(Trap, match=message):
            engine.process(HEAD, inputs, outputs)
    with pytest.raises(sail.SailEngineError):
        engine.process(HEAD, {0: tensor(sail.Dtype.BM_FLOAT16, [128])}, filled)
    with pytest.raises(IndexError):
        engine.process("no net", fed, filled)


def dangling_view(source: Any) -> Any:
    """Return a view of a tensor that is gone when this returns."""
    return type(source)(source, source.shape(), 0, True)


def test_the_double_hears_wrong_tensors(sail: ModuleType) -> None:
    handle, half = sail.Handle(0), sail.Dtype.BM_FLOAT16
    tensor = sail.Tensor(handle, [8], half, False, True)
    for dtype in (np.float16, np.int64, np.uint16):
        with pytest.raises(Trap, match="becomes FLOAT32"):
            sail.Tensor(handle, np.zeros(8, dtype))
    for values in (np.zeros(8, np.float16), np.zeros(8, np.int64), np.zeros(4, np.uint16)):
        with pytest.raises(sail.SailTensorError):
            tensor.update_data(values)
    with pytest.raises(sail.SailTensorError, match="out of range"):
        sail.Tensor(tensor, [4], 5, True)
    with pytest.raises(Trap, match="negative"):
        tensor.sync_d2d(sail.Tensor(handle, [8], half, False, True), -1, 0, 2)
    with pytest.raises(Trap, match="overlaps"):
        tensor.sync_d2d(sail.Tensor(tensor, [4], 2, True), 0, 0, 4)
    with pytest.raises(RuntimeError, match="no enough device memory"):
        sail.Tensor(handle, [64 * MEGABYTE], half, False, True)
    with pytest.raises(sail.SailTensorError, match="invalid Tensor"):
        sail.Tensor(handle, [8, 0], half, False, True).asnumpy()
