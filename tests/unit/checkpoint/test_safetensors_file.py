import json
import mmap
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from baichuan2_tpu.checkpoint.formats.safetensors_file import SafetensorsFile
from baichuan2_tpu.errors import CheckpointError
from models.tiny_checkpoint import round_to_bfloat16, write_safetensors_bf16


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {
        "a": random.random((5, 3), np.float32),
        "b": random.random(7).astype(np.float16),
        "c": np.arange(6, dtype=np.int32).reshape(2, 3),
        "scalar": np.array(2.5),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert {name: info.shape for name, info in file.tensors.items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.read(name), tensor)
    np.testing.assert_array_equal(file.read("a", 1, 4), tensors["a"][1:4])
    np.testing.assert_array_equal(file.read("a", 3, 99), tensors["a"][3:])
    file.close()


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    values = round_to_bfloat16(np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32))
    write_safetensors_bf16(tmp_path / "m.safetensors", {"a": values})
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "m.safetensors").read("a", 1), values[1:])


def test_released_pages_read_the_same_again(tmp_path: Path) -> None:
    values = np.arange(4 * mmap.PAGESIZE, dtype=np.float32)
    save_file({"a": values[:100], "b": values}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    view = file.read("b")
    before = view.sum()
    file.release("b")
    assert view.sum() == before
    file.close()
    assert view[-1] == values[-1]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "the header is not JSON"),
        (b"[" * 100_000, b"", "the header is not JSON"),
        (
            {"a": entry(shape=[1 << 40, 1 << 40], offsets=[0, 1 << 62])},
            b"",
            "tensor 'a': has the shape [1099511627776, 1099511627776], which no model has",
        ),
        ({"a": entry(shape=[1] * 100_000)}, b"", "tensor 'a': has the shape [1, 1, 1, 1, 1, 1, ...]"),
        ([], b"", "the header holds a list, not a JSON object"),
        ({"a": 1}, b"", "tensor 'a': its header entry is 1"),
        ({"a": entry("Q4")}, bytes(8), "tensor 'a': dtype is 'Q4', allowed are BF16"),
        ({"a": entry(shape=[-2])}, bytes(8), "tensor 'a': its shape or offsets are malformed"),
        ({"a": entry(shape=[True, 2])}, bytes(8), "tensor 'a': its shape or offsets are malformed"),
        ({"a": entry(offsets=[8])}, bytes(8), "tensor 'a': its shape or offsets are malformed"),
        (
            {"a": entry(shape=[3])},
            bytes(8),
            "tensor 'a': shape (3,) of F32 needs 12 bytes, its offsets hold 8",
        ),
        (
            {"a": entry()},
            bytes(7),
            "tensor 'a' ends at byte 8 of the data, the file holds 7; it is truncated",
        ),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), "tensor 'b' overlaps the tensor before it"),
        ({"a": entry(), "b": entry(offsets=[9, 17])}, bytes(17), "tensor 'b' leaves a hole before it"),
        ({"a": entry()}, bytes(9), "1 bytes belong to no tensor"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    path = write(tmp_path / "m.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"abc", (1 << 40).to_bytes(8, "little"), b"\xff" * 8])
def test_a_file_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        SafetensorsFile(path)


def test_a_link_to_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"cannot be read \(is not a regular file\)"):
        SafetensorsFile(tmp_path / "m.safetensors")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        SafetensorsFile(tmp_path / "m.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, path)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with suppress(CheckpointError):
        file = SafetensorsFile(path)
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape
