"""Read one ``.bin`` file of PyTorch without PyTorch, and without running anything that is in it.

Such a file is a zip: a pickle says which tensors there are, stored members hold their numbers. A pickle can
call any function, so the one used here knows three: rebuild a tensor, rebuild a parameter, make an
OrderedDict. Not here: the older format without a zip, which is refused.
Source: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch 2.5.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.source import DTYPES, MappedFile, TensorInfo, widen
from baichuan2_tpu.errors import CheckpointError

__all__ = ["TorchFile"]

_STORAGES = {
    "BFloat16Storage": "BF16",
    "HalfStorage": "F16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "IntStorage": "I32",
    "LongStorage": "I64",
}
_LOCAL_HEADER = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
_PICKLE_LIMIT_BYTES = 64 << 20  # the 7B's is 30 kB
_LEGACY_START = b"\x80"
_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a damaged pickle makes the unpickler raise."""


@dataclass(frozen=True, slots=True)
class _StorageType:
    """Stands for a class like ``torch.BFloat16Storage``."""

    dtype: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """A run of numbers in a member of the zip. Units: ``elements`` counts numbers."""

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage. Units: ``offset`` and ``strides`` count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """The tensors of one file; see ``TensorSource``.

    Raises: CheckpointError naming the file and the tensor, or the function that the pickle asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        members, pickled = _read_zip(self._file)
        self._views = _load_views(path, pickled)
        self._starts: dict[str, int] = {}
        for name, view in self._views.items():
            member = members.get(f"data/{view.storage.key}")
            self._starts[name] = _data_start(self._file, name, view, member)
        self._tensors = {
            name: TensorInfo(view.shape, view.storage.dtype, path) for name, view in self._views.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Everything the file holds."""
        return self._tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows of one tensor: a view, or float32 in place of bfloat16."""
        view = self._views[name]
        dtype = DTYPES[view.storage.dtype]
        storage = self._file.view(self._starts[name], view.storage.elements, dtype)
        strides = tuple(stride * dtype.itemsize for stride in view.strides)
        tensor = np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides, writeable=False)
        return widen(tensor[start:stop] if view.shape else tensor, view.storage.dtype)

    def release(self, name: str) -> None:
        """Give the pages of the tensor's storage back."""
        storage, start = self._views[name].storage, self._starts[name]
        self._file.release(start, start + storage.elements * DTYPES[storage.dtype].itemsize)

    def close(self) -> None:
        """Unmap the file once no view is left."""
        self._file.close()


def _read_zip(file: MappedFile) -> tuple[dict[str, zipfile.ZipInfo], bytes]:
    """Return the members by their names below the top folder, and the pickle."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            # The top folder's name varies: "archive/data.pkl", "pytorch_model/data.pkl".
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            info = members.get("data.pkl")
            if info is None or info.file_size > _PICKLE_LIMIT_BYTES:
                raise CheckpointError(f"{file.path}: holds no data.pkl of a state dict; fetch the file again")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise CheckpointError(f"{file.path}: is not little-endian; save it again with torch.save")
            return members, archive.read(info)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        if file.bytes(0, 1) == _LEGACY_START:
            raise CheckpointError(
                f"{file.path}: is a pickle in the format before PyTorch 1.6, allowed is the zip format; "
                "save it again with a newer torch.save"
            ) from error
        raise CheckpointError(
            f"{file.path}: is no readable zip ({error}); it is truncated or damaged, fetch it again"
        ) from error


def _load_views(path: Path, pickled: bytes) -> dict[str, _Tensor]:
    """Unpickle the state dict; its tensors come as views that are not read yet."""
    try:
        _check_memo(pickled)
        values: object = _Unpickler(path, pickled).load()
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: its pickle is damaged ({error}); fetch the file again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, allowed is a dictionary of tensors")
    items = cast("dict[object, object]", values)
    views: dict[str, _Tensor] = {}
    for name, view in items.items():
        if not isinstance(name, str) or not isinstance(view, _Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(view).__name__}, allowed are tensors only")
        views[name] = view
    return views


def _check_memo(pickled: bytes) -> None:
    """Refuse a memo index, for which the unpickler reserves memory, or an escape that no pickle has."""
    with warnings.catch_warnings():
        # Of damaged text Python only warns that it will not be read any more one day.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            operations = list(pickletools.genops(pickled))
        except DeprecationWarning as error:
            raise pickle.UnpicklingError(str(error)) from error
    for opcode, argument, _ in operations:
        is_memo_write = opcode.name in ("PUT", "LONG_BINPUT")
        if is_memo_write and not (isinstance(argument, int) and 0 <= argument < len(pickled)):
            raise pickle.UnpicklingError(f"memo index {argument} in {len(pickled)} bytes")


class _Unpickler(pickle.Unpickler):
    """An unpickler that can make tensors and dictionaries, and nothing else."""

    def __init__(self, path: Path, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self._path = path
        self._allowed: dict[tuple[str, str], Callable[..., object] | _StorageType] = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("collections", "OrderedDict"): OrderedDict,
        }
        self._allowed |= {("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()}

    def find_class(self, module_name: str, global_name: str, /) -> Any:  # noqa: ANN401 - as the base class has it
        """Return our stand-in for what the pickle asks for."""
        found = self._allowed.get((module_name, global_name))
        if found is None:
            raise CheckpointError(
                f"{self._path}: its pickle asks for {module_name}.{global_name}, allowed are tensors only; "
                "nothing was run, do not trust this file"
            )
        return found

    def persistent_load(self, pid: object) -> _Storage:
        """Return the storage that a persistent id names."""
        match pid:
            case ("storage", _StorageType() as kind, str() as key, str(), int() as elements) if elements >= 0:
                return _Storage(key, kind.dtype, elements)
            case _:
                raise pickle.UnpicklingError(f"persistent id {pid!r} is no storage")


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> _Tensor:
    """Stand in for ``torch._utils._rebuild_tensor_v2``; a view beyond its storage is refused."""
    sizes, steps = _counts(shape), _counts(strides)
    if not isinstance(storage, _Storage) or not isinstance(offset, int) or len(sizes) != len(steps):
        raise pickle.UnpicklingError("a tensor is rebuilt from something else than a storage")
    last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if offset < 0 or (math.prod(sizes) > 0 and last >= storage.elements):
        raise pickle.UnpicklingError(
            f"a tensor of shape {sizes} ends at {last}, storage {storage.key} has {storage.elements}"
        )
    return _Tensor(storage, offset, sizes, steps)


def _rebuild_parameter(data: object, *_: object) -> object:
    """Stand in for ``torch._utils._rebuild_parameter``."""
    return data


def _counts(value: object) -> tuple[int, ...]:
    """Return a tuple of integers that are not negative."""
    items = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (None,)
    counts = tuple(one for one in items if isinstance(one, int) and one >= 0)
    if len(counts) != len(items):
        raise pickle.UnpicklingError(f"{value!r} is no tensor shape")
    return counts


def _data_start(file: MappedFile, name: str, view: _Tensor, member: zipfile.ZipInfo | None) -> int:
    """Return the offset in the file of a tensor's storage, which must lie there uncompressed and whole."""
    where = f"{file.path}: tensor {name!r}"
    if member is None:
        raise CheckpointError(f"{where}: its data (data/{view.storage.key}) is missing; fetch the file again")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise CheckpointError(f"{where}: its data is compressed, allowed is stored; save it with torch.save")
    needed = view.storage.elements * DTYPES[view.storage.dtype].itemsize
    # The local header may be longer than the directory's: torch pads it so that the data is aligned.
    header = file.bytes(member.header_offset, member.header_offset + _LOCAL_HEADER_BYTES)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = member.header_offset + _LOCAL_HEADER_BYTES + lengths
    if member.file_size < needed or header[:4] != _LOCAL_HEADER or start + needed > file.size:
        raise CheckpointError(
            f"{where}: needs {needed} bytes of data, the file holds {member.file_size}; fetch the file again"
        )
    return start
