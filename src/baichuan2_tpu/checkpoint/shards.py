"""Several files of one format read as one source: the sharded checkpoints of Hugging Face.

Source: ``model.safetensors.index.json`` and ``pytorch_model.bin.index.json`` as transformers writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.source import TensorInfo, TensorSource
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import check_plain_name, read_json
from baichuan2_tpu.quoting import quote

__all__ = ["ShardedSource", "list_shards"]


class _ShardFile(TensorSource, Protocol):
    """A source that is one file."""

    def close(self) -> None: ...


class ShardedSource:
    """The tensors of several files, which are ``paths``; see ``TensorSource``.

    Raises: CheckpointError when a file is missing or wrong, a tensor is in two files, or the index says
    something else than the files.
    """

    def __init__(self, directory: Path, name: str, open_file: Callable[[Path], _ShardFile]) -> None:
        files, index = list_shards(directory, name)
        self.paths = files
        self._files = [open_file(path) for path in files]
        self._owners: dict[str, _ShardFile] = {}
        for path, file in zip(files, self._files, strict=True):
            for tensor in file.tensors:
                if tensor in self._owners:
                    other = self._owners[tensor].tensors[tensor].file
                    raise CheckpointError(
                        f"{path}: tensor {quote(tensor)} is in {other} too; keep one of the files"
                    )
                self._owners[tensor] = file
        _check_index(directory / f"{name}.index.json", index, self.tensors)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Everything the files hold."""
        return {name: file.tensors[name] for name, file in self._owners.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows of one tensor."""
        return self._owners[name].read(name, start, stop)

    def release(self, name: str) -> None:
        """Give the tensor's pages back."""
        self._owners[name].release(name)

    def close(self) -> None:
        """Unmap every file once no view is left."""
        for file in self._files:
            file.close()


def list_shards(directory: Path, name: str) -> tuple[list[Path], Mapping[str, str] | None]:
    """Return the files of a checkpoint called ``name``, and its index if it is sharded.

    Raises: CheckpointError when the index is malformed or names a file that is not there.
    """
    index_path = directory / f"{name}.index.json"
    if not index_path.exists():
        return [directory / name], None
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: has no weight_map; fetch the file again")
    index = _read_index(index_path, cast("dict[str, object]", weight_map))
    files = [directory / name for name in sorted(set(index.values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{index_path}: names {file.name}, which is not there; fetch that file")
    return files, index


def _read_index(path: Path, weight_map: Mapping[str, object]) -> dict[str, str]:
    """Return the file of every tensor; the files lie in the folder of the index."""
    index: dict[str, str] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(f"{path}: the file of {quote(tensor)} is {quote(file)}, allowed is a name")
        index[tensor] = file
    try:
        for name in set(index.values()):
            check_plain_name(name)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; fetch the file again") from error
    return index


def _check_index(path: Path, index: Mapping[str, str] | None, tensors: Mapping[str, TensorInfo]) -> None:
    """Check that every tensor the index names is in the file it names."""
    for name, file in (index or {}).items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(
                f"{path}: says tensor {quote(name)} is in {file}, where it is not; fetch the shards again"
            )
