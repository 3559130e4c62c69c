"""Read one ``.bin`` file of PyTorch without PyTorch, and without running anything that is in it.

Such a file is a zip: a pickle says which tensors there are, stored members hold their numbers.
Not here: the pickle (``torch_pickle``); the older format without a zip, which is refused.
Source: ``torch/serialization.py`` of PyTorch 2.5; .ZIP File Format Specification 6.3.9 for the records.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.formats.torch_pickle import (
    PICKLE_LIMIT_BYTES,
    Numbers,
    TensorView,
    read_state_dict,
)
from baichuan2_tpu.checkpoint.source import DTYPES, MappedFile, TensorInfo, widen
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote, shorten

__all__ = ["TorchFile"]

_LOCAL_HEADER = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
_END_OF_DIRECTORY = b"PK\x05\x06"
_END_BYTES = 22
_COMMENT_BYTES = 1 << 16
_MOST_MEMBERS = 50_000
"""Of the zip: zipfile makes an object of each, and a 13B has 300."""
_LEGACY_START = b"\x80"


class TorchFile:
    """The tensors of one file; see ``TensorSource``.

    Raises: CheckpointError naming the file and the tensor, or the function that the pickle asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        members, pickled = _read_zip(self._file)
        entries = read_state_dict(path, pickled)
        self._views = {name: view for name, view in entries.items() if isinstance(view, TensorView)}
        self._numbers = {name: view for name, view in entries.items() if isinstance(view, Numbers)}
        self._starts: dict[str, int] = {}
        for name, view in self._views.items():
            member = members.get(f"data/{view.storage.key}")
            self._starts[name] = _data_start(self._file, name, view, member)
        self._tensors = {
            name: TensorInfo(view.shape, view.storage.dtype, path) for name, view in self._views.items()
        }
        self._tensors |= {
            name: TensorInfo((len(numbers.values),), "I64", path) for name, numbers in self._numbers.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Everything the file holds."""
        return self._tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows of one tensor: a view, or float32 in place of bfloat16."""
        if name in self._numbers:
            return np.array(self._numbers[name].values, np.int64)[start:stop]
        view = self._views[name]
        dtype = DTYPES[view.storage.dtype]
        storage = self._file.view(self._starts[name], view.storage.elements, dtype)
        strides = tuple(stride * dtype.itemsize for stride in view.strides)
        tensor = np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides, writeable=False)
        return widen(tensor[start:stop] if view.shape else tensor, view.storage.dtype)

    def release(self, name: str) -> None:
        """Give the pages of the tensor's storage back."""
        if name in self._numbers:
            return
        storage, start = self._views[name].storage, self._starts[name]
        self._file.release(start, start + storage.elements * DTYPES[storage.dtype].itemsize)

    def close(self) -> None:
        """Unmap the file once no view is left."""
        self._file.close()


def _read_zip(file: MappedFile) -> tuple[dict[str, zipfile.ZipInfo], bytes]:
    """Return the members by their names below the top folder, and the pickle."""
    _check_member_count(file)
    try:
        with zipfile.ZipFile(file.path) as archive:
            # The top folder's name varies: "archive/data.pkl", "pytorch_model/data.pkl".
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            order = _read_small(file, archive, members.get("byteorder"), limit_bytes=16)
            if order not in (None, b"little"):
                raise CheckpointError(f"{file.path}: is not little-endian; save it again with torch.save")
            pickled = _read_small(file, archive, members.get("data.pkl"), limit_bytes=PICKLE_LIMIT_BYTES)
            if pickled is None:
                raise CheckpointError(f"{file.path}: holds no data.pkl of a state dict; fetch the file again")
            return members, pickled
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if file.bytes(0, 1) == _LEGACY_START:
            raise CheckpointError(
                f"{file.path}: is a pickle in the format before PyTorch 1.6, allowed is the zip format; "
                "save it again with a newer torch.save"
            ) from error
        raise CheckpointError(
            f"{file.path}: is not a readable zip ({shorten(str(error))}); "
            "it is truncated or damaged, fetch it again"
        ) from error


def _read_small(
    file: MappedFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo | None, *, limit_bytes: int
) -> bytes | None:
    """Return a member that is read whole, if it is there; one that could inflate is refused unread."""
    if info is None:
        return None
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit_bytes:
        raise CheckpointError(
            f"{file.path}: its {shorten(info.filename)} has {info.file_size} bytes, allowed are "
            f"{limit_bytes}, not compressed; save it again with torch.save"
        )
    return archive.read(info)


def _check_member_count(file: MappedFile) -> None:
    """Refuse a directory of millions of members, which zipfile would make objects of first."""
    tail = file.bytes(max(0, file.size - _END_BYTES - _COMMENT_BYTES), file.size)
    end = tail.rfind(_END_OF_DIRECTORY)
    record = tail[end : end + _END_BYTES] if end >= 0 else b""
    directory_bytes = int.from_bytes(record[12:16], "little")
    # 0xFFFF stands for more, as the larger record in front says; no directory is larger than its entries.
    if directory_bytes == 0xFFFFFFFF or directory_bytes // 46 > _MOST_MEMBERS:
        raise CheckpointError(
            f"{file.path}: its zip has more than {_MOST_MEMBERS} members; save the state dict alone"
        )


def _data_start(file: MappedFile, name: str, view: TensorView, member: zipfile.ZipInfo | None) -> int:
    """Return the offset in the file of a tensor's storage, which must lie there uncompressed and whole."""
    where = f"{file.path}: tensor {quote(name)}"
    if member is None:
        raise CheckpointError(
            f"{where}: its data (data/{shorten(view.storage.key)}) is missing; fetch the file again"
        )
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
