import pickle
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baichuan2_tpu.checkpoint.formats.torch_file import TorchFile
from baichuan2_tpu.errors import CheckpointError
from models.tiny_checkpoint import (
    pickled_dict,
    pickled_global,
    pickled_int,
    pickled_tensor,
    pickled_text,
    pickled_tuple,
    round_to_bfloat16,
    write_bin,
    write_bin_zip,
)

FLOATS = np.arange(24, dtype=np.float32)


def write_one(path: Path, tensor: bytes, data: bytes = FLOATS.tobytes()) -> Path:
    write_bin_zip(path, pickled_dict([("w", tensor)]), {"0": data})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        TorchFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    values = round_to_bfloat16(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))
    write_bin(tmp_path / "m.bin", {"a": values, "b": values[0]})
    file = TorchFile(tmp_path / "m.bin")
    assert {name: info.shape for name, info in file.tensors.items()} == {"a": (5, 4), "b": (4,)}
    np.testing.assert_array_equal(file.read("a"), values)
    np.testing.assert_array_equal(file.read("a", 1, 3), values[1:3])
    file.release("a")
    np.testing.assert_array_equal(file.read("b"), values[0])
    file.close()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("FloatStorage", np.float32), ("HalfStorage", np.float16), ("DoubleStorage", np.float64)],
)
def test_other_floats_come_as_stored(tmp_path: Path, kind: str, dtype: type[np.floating]) -> None:
    values = FLOATS.astype(dtype).reshape(4, 6)
    path = write_one(tmp_path / "m.bin", pickled_tensor("0", (4, 6), kind=kind), values.tobytes())
    found = TorchFile(path).read("w")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


def test_a_transposed_slice_of_a_storage_is_read_through_its_strides(tmp_path: Path) -> None:
    tensor = pickled_tensor("0", (3, 2), strides=(1, 6), offset=7, elements=24, kind="FloatStorage")
    file = TorchFile(write_one(tmp_path / "m.bin", tensor))
    np.testing.assert_array_equal(file.read("w"), FLOATS.reshape(4, 6)[1:3, 1:4].T)
    np.testing.assert_array_equal(file.read("w", 2), FLOATS.reshape(4, 6)[1:3, 3:4].T)


def test_two_tensors_can_share_a_storage(tmp_path: Path) -> None:
    records = [
        ("a", pickled_tensor("0", (4,), elements=24, kind="FloatStorage")),
        ("b", pickled_tensor("0", (4,), offset=20, elements=24, kind="FloatStorage")),
    ]
    write_bin_zip(tmp_path / "m.bin", pickled_dict(records), {"0": FLOATS.tobytes()})
    np.testing.assert_array_equal(TorchFile(tmp_path / "m.bin").read("b"), FLOATS[20:])


def test_a_parameter_is_the_tensor_in_it(tmp_path: Path) -> None:
    hooks = pickled_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    tensor = pickled_tensor("0", (24,), kind="FloatStorage")
    parameter = pickled_global("torch._utils", "_rebuild_parameter")
    parameter += pickled_tuple([tensor, pickle.NEWTRUE, hooks]) + pickle.REDUCE
    np.testing.assert_array_equal(TorchFile(write_one(tmp_path / "m.bin", parameter)).read("w"), FLOATS)


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("torch.storage", "_load_from_bytes")],
)
def test_a_pickle_that_wants_anything_but_tensors_is_refused_and_not_run(
    tmp_path: Path, module: str, name: str
) -> None:
    mark = tmp_path / "ran"
    call = pickled_global(module, name) + pickled_tuple([pickled_text(f"touch {mark}")]) + pickle.REDUCE
    message = refusal(write_one(tmp_path / "m.bin", call))
    assert f"its pickle asks for {module}.{name}, allowed are tensors only" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (pickled_int(3), "'w' is 3, allowed are tensors only"),
        (pickled_tensor("0", (25,), elements=24, kind="FloatStorage"), "ends at 24, storage '0' has 24"),
        (pickled_tensor("0", (2,), offset=-1, elements=24, kind="FloatStorage"), "storage '0' has 24"),
        (
            pickled_tensor("0", (2, 2), strides=(-1, 1), elements=24, kind="FloatStorage"),
            "not a tensor shape",
        ),
        (pickled_tensor("0", (2, 2), strides=(1,), elements=24, kind="FloatStorage"), "something else"),
        (pickled_tensor("0", (2,), kind="QInt8Storage"), "asks for torch.QInt8Storage"),
        (pickled_tensor("9", (2,), kind="FloatStorage"), "tensor 'w': its data (data/9) is missing"),
        (
            pickled_tensor("0", (25,), kind="FloatStorage"),
            "tensor 'w': needs 100 bytes of data, the file holds 96",
        ),
        (pickled_text("id") + pickle.BINPERSID, "persistent id is 'id', which does not name a storage"),
        (b"\xff", "its pickle is damaged"),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(
    tmp_path: Path, tensor: bytes, message: str
) -> None:
    assert message in refusal(write_one(tmp_path / "m.bin", tensor))


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    write_bin_zip(tmp_path / "m.bin", pickle.dumps([1, 2]), {})
    assert "holds a list, allowed is a dictionary of tensors" in refusal(tmp_path / "m.bin")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_one(tmp_path / "m.bin", pickled_tensor("0", (24,), kind="FloatStorage"))
    path.write_bytes(path.read_bytes()[:-40])
    assert "is not a readable zip" in refusal(path)
    assert "it is truncated or damaged" in refusal(path)


def test_the_format_before_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(pickle.dumps({"a": 1}, 2))
    assert "the format before PyTorch 1.6" in refusal(tmp_path / "m.bin")


def test_a_zip_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as archive:
        archive.writestr("archive/other", b"")
    assert "holds no data.pkl" in refusal(tmp_path / "m.bin")


def test_compressed_and_big_endian_data_are_refused(tmp_path: Path) -> None:
    pickled = pickled_dict([("w", pickled_tensor("0", (24,), kind="FloatStorage"))])
    with zipfile.ZipFile(tmp_path / "m.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", FLOATS.tobytes())
    assert "its archive/data.pkl has" in refusal(tmp_path / "m.bin")
    with zipfile.ZipFile(tmp_path / "m.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled, compress_type=zipfile.ZIP_STORED)
        archive.writestr("archive/data/0", FLOATS.tobytes())
    assert "tensor 'w': its data is compressed" in refusal(tmp_path / "m.bin")
    with zipfile.ZipFile(tmp_path / "b.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"big")
    assert "is not little-endian" in refusal(tmp_path / "b.bin")


def test_a_pickle_of_protocol_4_is_read_like_one_of_protocol_2(tmp_path: Path) -> None:
    tensor = pickled_tensor("0", (24,), kind="FloatStorage")
    module, name = pickled_text("torch._utils"), pickled_text("_rebuild_tensor_v2")
    tensor = tensor.replace(
        pickled_global("torch._utils", "_rebuild_tensor_v2"), module + name + pickle.STACK_GLOBAL
    )
    np.testing.assert_array_equal(TorchFile(write_one(tmp_path / "m.bin", tensor)).read("w"), FLOATS)


def test_versions_that_torch_attaches_to_a_state_dict_are_passed_over(tmp_path: Path) -> None:
    ordered = pickled_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    entry = pickled_text("w") + pickled_tensor("0", (24,), kind="FloatStorage")
    versions = pickled_text("_metadata") + ordered + pickled_text("") + pickle.EMPTY_DICT + pickle.SETITEM
    state = pickle.EMPTY_DICT + versions + pickle.SETITEM
    pickled = pickle.PROTO + b"\x02" + ordered + entry + pickle.SETITEM + state + pickle.BUILD + pickle.STOP
    write_bin_zip(tmp_path / "m.bin", pickled, {"0": FLOATS.tobytes()})
    np.testing.assert_array_equal(TorchFile(tmp_path / "m.bin").read("w"), FLOATS)


DEEP = 1_000_000
HOSTILE = {
    "tuples a million deep": pickle.EMPTY_TUPLE + pickle.TUPLE1 * DEEP,
    "a dictionary in itself": pickle.EMPTY_DICT + b"q\x00" + pickled_text("a") + b"h\x00" + pickle.SETITEM,
    "a nested tuple as a name": pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + pickle.NONE + pickle.SETITEM,
    "a nested tuple as a persistent id": pickle.EMPTY_TUPLE + pickle.TUPLE1 * 3 + pickle.BINPERSID,
    "a tuple of a million numbers": pickle.MARK + pickle.BININT1 * 2 * DEEP + pickle.TUPLE,
    "marks without end": pickle.MARK * DEEP,
    "an empty stack": pickle.TUPLE3,
    "no mark": pickle.SETITEMS,
    "a memo that is empty": pickle.BINGET + b"\x07",
    "a number of 255 bytes": pickle.LONG1 + b"\xff" + b"\x7f" * 255,
    "an instance by its name": b"(iposix\nsystem\n.",
    "text that is evaluated": pickle.STRING + b"'" + b"a" * 100_000 + b"'\n",
    "an extension": pickle.EXT1 + b"\x01",
    "a new object": pickled_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
    "a list": pickle.EMPTY_LIST + pickle.NONE + pickle.APPEND,
    "a long name": pickled_global("os", "s" * 100_000),
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_torch_never_writes_is_refused_in_one_short_line(tmp_path: Path, value: bytes) -> None:
    """A tuple a million deep ended the process by SIGSEGV, where it was hashed or printed."""
    message = refusal(write_one(tmp_path / "m.bin", value))
    assert len(message) < len(str(tmp_path)) + 300
    assert "\n" not in message


def test_a_member_that_would_inflate_is_refused_unread(tmp_path: Path) -> None:
    """16 MB in the file became gigabytes in memory."""
    with zipfile.ZipFile(tmp_path / "m.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))
    tracemalloc.start()
    assert "its archive/data.pkl has 67108864 bytes" in refusal(tmp_path / "m.bin")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 << 20
    with zipfile.ZipFile(tmp_path / "b.bin", "w") as archive:
        archive.writestr("archive/byteorder", bytes(1000))
    assert "its archive/byteorder has 1000 bytes, allowed are 16" in refusal(tmp_path / "b.bin")


def test_a_zip_of_too_many_members_is_refused(tmp_path: Path) -> None:
    path = write_one(tmp_path / "m.bin", pickled_tensor("0", (24,), kind="FloatStorage"))
    content = bytearray(path.read_bytes())
    content[-10:-6] = (46 * 50_001).to_bytes(4, "little")
    path.write_bytes(content)
    assert "its zip has more than 50000 members" in refusal(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_of_the_pickle_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    pickled = bytearray(pickled_dict([("w", pickled_tensor("0", (4, 6), kind="FloatStorage"))]))
    pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.bin"
    write_bin_zip(path, bytes(pickled[: data.draw(st.integers(0, len(pickled)))]), {"0": FLOATS.tobytes()})
    with suppress(CheckpointError):
        file = TorchFile(path)
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape


@pytest.mark.parametrize("name", ["w", "w" * 2, "w" * 3, "w" * 4])
def test_rows_are_read_without_a_copy_of_the_whole_tensor(tmp_path: Path, name: str) -> None:
    """Where a tensor lay unaligned in the zip, every slice copied all of it: 1 GB for an embedding."""
    write_bin(tmp_path / "pytorch_model.bin", {name: np.ones((1024, 1024), np.float32)})
    file = TorchFile(tmp_path / "pytorch_model.bin")
    tracemalloc.start()
    rows = file.read(name, 1000, 1008)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(rows, 1)
    assert peak_bytes < 8 * rows.nbytes
