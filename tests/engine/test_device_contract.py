"""What every device promises (engine/device/base.py): libbmrt on the simulator, and SAIL.

SAIL is a double on the simulator, as built for a card and as built for an SoC, and the real library where
it is installed.
"""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.engine.device.base import DTYPES, Buffer, Device
from baichuan2_tpu.engine.device.bmrt import BmrtDevice
from baichuan2_tpu.engine.device.sail import SailDevice
from baichuan2_tpu.engine.device.sail_library import check_apart
from baichuan2_tpu.errors import ArtifactError, BackendError, BackendUnavailable, DeviceError
from baichuan2_tpu.manifest import Manifest
from baichuan2_tpu.toolchain import find_simulator
from doubles.sail_double import install_sail
from models.tiny_bundle import TINY_SETTINGS, TinyBundles

BLOCK = "block_cache_0"
HEAD = "lm_head"
HEAD_ROW = len(TINY_SETTINGS.head_rows) - 1
"""The stage of one row; the largest comes first."""
KEYS, VALUES = 3, 4
ROWS = TINY_SETTINGS.rows
TENSORS = 2 * TINY_SETTINGS.layers_per_net
"""Keys and values of the layers of one net."""
MASKED = -1e4
IS_SAIL_INSTALLED = importlib.util.find_spec("sophon") is not None
NEEDS_SAIL = pytest.mark.skipif(not IS_SAIL_INSTALLED, reason="needs SOPHON-SAIL: see docs/engines.md")
DEVICES = ["bmrt-simulator", "sail-on-card", "sail-on-soc", pytest.param("sail-itself", marks=NEEDS_SAIL)]
UPLOADED = [name for name in DTYPES if name not in ("int16", "uint32")]
"""What both libraries upload."""

Opener = Callable[..., Device]


class StrangeBuffer(Buffer):
    """A buffer of a device that there is not."""

    dtype = "float16"
    shape = (4,)


@pytest.fixture(scope="module")
def bmodel(tiny_bundle: TinyBundles) -> Path:
    folder = tiny_bundle(4).folder
    return folder / Manifest.read(folder).bmodel


@pytest.fixture(scope="module", params=DEVICES)
def open_device(request: pytest.FixtureRequest, bmodel: Path) -> Iterator[Opener]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "bmrt-simulator":
            yield partial(BmrtDevice, simulator=find_simulator())
            return
        if request.param == "sail-itself":
            skip_beside_the_simulator()
        else:
            install_sail(patch, find_simulator(), is_soc=request.param == "sail-on-soc")
        yield SailDevice


def skip_beside_the_simulator() -> None:
    try:
        check_apart()
    except BackendUnavailable:
        pytest.skip("needs a process without the simulator: run pytest tests/engine -k sail-itself")


@pytest.fixture(scope="module")
def device(open_device: Opener, bmodel: Path) -> Iterator[Device]:
    with open_device(bmodel) as opened:
        yield opened


def random_values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.generic]:
    numbers = np.random.default_rng(seed).integers(0, 100, shape)
    return numbers.astype(DTYPES[dtype])


def placed(device: Device, dtype: str, values: NDArray[np.generic]) -> Buffer:
    buffer = device.allocate(dtype, values.shape)
    device.upload(buffer, values)
    return buffer


def test_nets_are_described(device: Device) -> None:
    block, head = device.nets[BLOCK], device.nets[HEAD]
    assert device.chip == "bm1684x"
    assert (block.is_dynamic, block.has_own_io, head.has_own_io) == (False, True, False)
    first = block.stages[0]
    assert (first.inputs[0].shape[1], first.inputs[KEYS].shape[1]) == (64, ROWS)
    assert {stage.inputs[0].shape for stage in block.stages} == {(1, 1, 128), (1, 16, 128), (1, 64, 128)}
    stage = block.stages[stage_of(device, 16)]
    assert [(one.dtype, one.shape) for one in stage.inputs] == [
        ("float16", (1, 16, 128)),
        ("int32", (1, 16)),
        ("float16", (1, 1, 16, ROWS + 16)),
        *[("float16", (1, ROWS, 4, 32))] * 4,
    ]
    assert [one.shape for one in stage.outputs] == [(1, 16, 128), *[(1, 16, 4, 32)] * 4]
    assert [one.shape for one in head.stages[HEAD_ROW].inputs] == [(1, 1, 128)]
    assert head.stages[HEAD_ROW].outputs[0].shape[1] >= 400, "the vocabulary, perhaps rounded up"


def test_new_memory_is_zero(device: Device) -> None:
    values = device.download(device.allocate("float32", (3, 5)))
    np.testing.assert_array_equal(values, np.zeros((3, 5), np.float32))


@pytest.mark.parametrize("dtype", UPLOADED)
def test_values_come_back_as_they_were(device: Device, dtype: str) -> None:
    values = random_values(dtype, (2, 3, 7))
    found = device.download(placed(device, dtype, values))
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(found, values)


def test_values_need_not_be_contiguous(device: Device) -> None:
    values = random_values("float16", (6, 4)).T
    np.testing.assert_array_equal(device.download(placed(device, "float16", values)), values)


def test_a_view_shares_the_memory_from_an_element_on(device: Device) -> None:
    values = random_values("int32", (4, 6))
    buffer = placed(device, "int32", values)
    rows = device.view(buffer, 6, (2, 6))
    inner = device.view(rows, 3, (1, 5))
    np.testing.assert_array_equal(device.download(rows), values[1:3])
    np.testing.assert_array_equal(device.download(inner).ravel(), values.ravel()[9:14])
    device.upload(inner, np.full((1, 5), -1, np.int32))
    assert (device.download(buffer).ravel()[9:14] == -1).all()


def test_a_view_keeps_what_it_views(device: Device) -> None:
    # A view of SAIL itself does not: its memory may be another's by the time it is read.
    view = device.view(device.view(placed(device, "uint8", np.arange(64, dtype=np.uint8)), 8, (8,)), 4, (4,))
    gc.collect()
    others = [placed(device, "uint8", np.zeros(64, np.uint8)) for _ in range(8)]
    np.testing.assert_array_equal(device.download(view), [12, 13, 14, 15])
    assert len(others) == 8


@pytest.mark.parametrize(("offset", "shape"), [(-1, (2,)), (9, (2,)), (0, (11,)), (0, (0,)), (10, (1,))])
def test_a_view_that_does_not_fit_is_refused(device: Device, offset: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(DeviceError, match="within a buffer of 10"):
        device.view(device.allocate("float16", (10,)), offset, shape)


def test_parts_of_one_buffer_are_copied(device: Device) -> None:
    buffer = placed(device, "float16", random_values("float16", (4, 8)))
    first, last = device.view(buffer, 0, (2, 8)), device.view(buffer, 16, (16,))
    device.copy(last, first)
    np.testing.assert_array_equal(device.download(last), device.download(first).ravel())


def test_a_copy_that_would_go_wrong_is_refused(device: Device) -> None:
    buffer = device.allocate("float16", (10,))
    for source, message in [
        (device.allocate("float16", (11,)), "cannot copy float16"),
        (device.allocate("bfloat16", (10,)), "cannot copy bfloat16"),
        (buffer, "overlap"),
    ]:
        with pytest.raises(DeviceError, match=message):
            device.copy(buffer, source)
    with pytest.raises(DeviceError, match="overlap"):
        device.copy(device.view(buffer, 0, (6,)), device.view(buffer, 4, (6,)))


@pytest.mark.parametrize(
    "values",
    [np.zeros(4, np.float32), np.zeros(4, np.uint16), np.zeros(5, np.float16), np.zeros((1, 4), np.float16)],
)
def test_values_of_another_form_are_refused(device: Device, values: NDArray[np.generic]) -> None:
    with pytest.raises(DeviceError, match="cannot upload"):
        device.upload(device.allocate("float16", (4,)), values)


def test_a_buffer_cannot_be_empty(device: Device) -> None:
    with pytest.raises(DeviceError, match="buffer"):
        device.allocate("float16", (4, 0))


def test_all_stages_of_a_net_have_one_history(device: Device) -> None:
    shape = device.nets[BLOCK].stages[0].inputs[KEYS].shape
    values = random_values("float16", shape)
    device.upload(device.input(BLOCK, KEYS, 0), values)
    for stage, info in enumerate(device.nets[BLOCK].stages):
        rows = info.inputs[KEYS].shape[1]
        np.testing.assert_array_equal(device.download(device.input(BLOCK, KEYS, stage)), values[:, :rows])
    assert not (device.download(device.input(BLOCK, VALUES)) == values).all()


def test_parts_of_a_nets_own_memory_are_written_and_read(device: Device) -> None:
    history = device.input(BLOCK, VALUES)
    device.upload(history, np.zeros(history.shape, np.float16))
    rows = random_values("float16", (1, 2, 4, 32))
    device.upload(device.view(history, 5 * 128, rows.shape), rows)
    found = device.download(history)
    np.testing.assert_array_equal(found[:, 5:7], rows)
    assert found.sum() == rows.sum()


def test_only_nets_with_memory_of_their_own_show_it(device: Device) -> None:
    for place in (device.input, device.output):
        with pytest.raises(DeviceError, match=f"{HEAD} has no input and output memory of its own"):
            place(HEAD, 0)
        with pytest.raises(DeviceError, match="the bmodel has no net block_9"):
            place("block_9", 0)


def test_keys_written_in_place_are_those_that_are_copied(device: Device) -> None:
    """Five tokens behind twenty, in stages of 16 and of 1, which is how the block loop fills the history."""
    copied, in_place = (run_block(device, is_in_place=flag) for flag in (False, True))
    for one, other in zip(copied, in_place, strict=True):
        np.testing.assert_array_equal(one, other)
    states, keys, values, *_ = copied
    assert np.isfinite(states).all()
    assert len({row.tobytes() for row in keys[0, :18]}) == 18, "every token has keys of its own"
    assert values[0, :18].any()
    assert not keys[0, 18:].any(), "nothing is written behind the last token"


def stage_of(device: Device, tokens: int) -> int:
    stages = device.nets[BLOCK].stages
    return next(index for index, stage in enumerate(stages) if stage.inputs[0].shape[1] == tokens)


def run_block(device: Device, *, is_in_place: bool) -> list[NDArray[np.generic]]:
    """Run 16 tokens, then two single ones; return the last states and the whole history."""
    history = [device.input(BLOCK, KEYS + tensor) for tensor in range(TENSORS)]
    for buffer in history:
        device.upload(buffer, np.zeros(buffer.shape, np.float16))
    generator = np.random.default_rng(1)
    length, states = 0, device.allocate("float16", (1, 1, 128))
    for tokens in (16, 1, 1):
        stage = stage_of(device, tokens)
        mask = np.full((1, 1, tokens, ROWS + tokens), MASKED, np.float16)
        mask[..., :length] = 0
        mask[0, 0, :, ROWS:][np.tri(tokens, dtype=bool)] = 0
        states = placed(device, "float16", generator.standard_normal((1, tokens, 128)).astype(np.float16))
        positions = placed(device, "int32", np.arange(length, length + tokens, dtype=np.int32)[None])
        inputs = [states, positions, placed(device, "float16", mask), *history]
        shape = (1, tokens, 4, 32)
        rows = [device.view(one, length * 128, shape) for one in history]
        outputs = rows
        if not is_in_place:
            outputs = [device.output(BLOCK, 1 + number, stage) for number in range(TENSORS)]
        device.launch(BLOCK, stage, inputs, [states, *outputs])  # the states take their own place
        if not is_in_place:
            for row, output in zip(rows, outputs, strict=True):
                device.copy(row, output)
        length += tokens
    return [device.download(one) for one in (states, *history)]


def head_output(device: Device) -> Buffer:
    info = device.nets[HEAD].stages[HEAD_ROW].outputs[0]
    return device.allocate(info.dtype, info.shape)


def test_a_net_without_memory_of_its_own_runs_on_any(device: Device) -> None:
    rows = placed(device, "float16", random_values("float16", (4, 128)))
    logits = head_output(device)
    found = []
    for row in (1, 2, 1):
        device.launch(HEAD, HEAD_ROW, [device.view(rows, row * 128, (1, 1, 128))], [logits])
        found.append(device.download(logits))
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 0


def test_launches_are_waited_for_before_data_moves_and_counted(device: Device) -> None:
    """libbmrt was waited for after every launch; SAIL does that by itself."""
    rows = placed(device, "float16", random_values("float16", (1, 1, 128)))
    outputs = [head_output(device) for _ in range(3)]
    before = replace(device.counts)
    for logits in outputs:
        device.launch(HEAD, HEAD_ROW, [rows], [logits])
    found = [device.download(logits) for logits in outputs]
    np.testing.assert_array_equal(found[0], found[2])
    counts = device.counts
    assert (counts.launches - before.launches, counts.copies - before.copies) == (3, 0)
    assert counts.waits - before.waits == (3 if device.name == "sail" else 1)
    assert counts.downloaded_bytes - before.downloaded_bytes == sum(logits.nbytes for logits in outputs)
    device.wait()
    assert device.counts.waits - before.waits <= 3, "nothing is left to wait for"


def test_a_launch_that_would_go_wrong_is_refused(device: Device) -> None:
    """For most of these SAIL would crash or compute nonsense, and the simulator end the process."""
    states, logits = device.allocate("float16", (1, 1, 128)), head_output(device)
    short = device.view(logits, 0, (1, logits.shape[1] - 1))
    for net, stage, inputs, outputs in [
        ("head", 0, [states], [logits]),
        (HEAD, 0, [states], [logits]),
        (HEAD, HEAD_ROW + 1, [states], [logits]),
        (HEAD, -1, [states], [logits]),
        (HEAD, HEAD_ROW, [], [logits]),
        (HEAD, HEAD_ROW, [states], []),
        (HEAD, HEAD_ROW, [states, states], [logits]),
        (HEAD, HEAD_ROW, [device.allocate("bfloat16", (1, 1, 128))], [logits]),
        (HEAD, HEAD_ROW, [device.allocate("float16", (1, 1, 127))], [logits]),
        (HEAD, HEAD_ROW, [device.allocate("float16", (1, 128))], [logits]),
        (HEAD, HEAD_ROW, [states], [short]),
        (HEAD, HEAD_ROW, [states], [device.allocate("int32", logits.shape)]),
    ]:
        with pytest.raises(DeviceError):
            device.launch(net, stage, inputs, outputs)
    device.launch(HEAD, HEAD_ROW, [states], [logits])


def test_a_buffer_of_another_kind_of_device_is_refused(device: Device) -> None:
    own, strange = device.allocate("float16", (4,)), StrangeBuffer()
    for use in (
        lambda: device.download(strange),
        lambda: device.view(strange, 0, (1,)),
        lambda: device.copy(own, strange),
        lambda: device.copy(strange, own),
        lambda: device.upload(strange, np.zeros(4, np.float16)),
    ):
        with pytest.raises(DeviceError, match="another"):
            use()


def test_memory_is_counted_where_the_device_can_tell(device: Device) -> None:
    before = device.memory()
    if before is None:
        pytest.skip("this device cannot tell")
    buffer = device.allocate("uint8", (1 << 23,))
    during = device.memory()
    assert during is not None
    assert (during.total, before.free - during.free) == (before.total, 1 << 23)
    del buffer
    gc.collect()
    assert device.memory() == before


def test_more_memory_than_there_is_is_refused_before_loading(open_device: Opener, bmodel: Path) -> None:
    with open_device(bmodel) as device:
        if device.memory() is None:
            pytest.skip("this device cannot tell")
    with pytest.raises(BackendError, match=f"{bmodel} with its buffers needs .* are free"):
        open_device(bmodel, reserve_bytes=1 << 44)


def test_a_device_that_does_not_exist_is_refused(open_device: Opener, bmodel: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"there is no device 99: .* counted from 0"):
        open_device(bmodel, device=99)


def test_a_damaged_bmodel_is_refused(open_device: Opener, bmodel: Path, tmp_path: Path) -> None:
    data = bmodel.read_bytes()
    (tmp_path / "short.bmodel").write_bytes(data[:-1000])
    (tmp_path / "other.bmodel").write_bytes(b"no bmodel" * 100)
    for name in ("short", "other", "missing"):
        with pytest.raises(ArtifactError, match=f"{name}.bmodel"):
            open_device(tmp_path / f"{name}.bmodel")


def test_a_closed_device_says_so(open_device: Opener, bmodel: Path) -> None:
    device = open_device(bmodel)
    buffer = device.allocate("float16", (4,))
    device.close()
    device.close()
    for use in (
        lambda: device.allocate("float16", (4,)),
        lambda: device.download(buffer),
        lambda: device.upload(buffer, np.zeros(4, np.float16)),
        lambda: device.input(BLOCK, KEYS),
        lambda: device.launch(HEAD, 0, [buffer], [buffer]),
    ):
        with pytest.raises(BackendError, match="closed"):
            use()


def test_the_simulator_ends_well_with_memory_in_use(bmodel: Path) -> None:
    """It ended the process with 255 where a buffer outlived its device."""
    program = (
        "import sys; from pathlib import Path; from baichuan2_tpu.engine.device.bmrt import BmrtDevice;"
        "device = BmrtDevice(Path(sys.argv[1]), simulator=Path(sys.argv[2]));"
        "buffer = device.allocate('float16', (4,)); device.close(); del buffer; print('closed')"
    )
    command = [sys.executable, "-c", program, str(bmodel), str(find_simulator())]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout) == (0, "closed\n"), child.stderr
