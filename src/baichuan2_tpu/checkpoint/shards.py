"""Several files of one format read as one source: the sharded checkpoints of Hugging Face.

Source: ``model.safetensors.index.json`` and ``pytorch_model.bin.index.json`` as transformers writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.source import TensorInfo, TensorSource
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import check_plain_name, read_json
from baichuan2_tpu.quoting import quote

__all__ = ["ShardedSource", "find_files"]

_SHARD_NUMBER = re.compile(r"-of-(\d{1,6})\.")


class _ShardFile(TensorSource, Protocol):
    """A source that is one file."""

    def close(self) -> None: ...


class ShardedSource:
    """The tensors of several files, which are ``paths``; see ``TensorSource``.

    Of two files with the same tensor the index chooses; where it is stale, what the files hold counts.
    Raises: CheckpointError when a file is missing or wrong, or a tensor is in two files and no index
    chooses.
    """

    def __init__(self, directory: Path, name: str, open_file: Callable[[Path], _ShardFile]) -> None:
        files, index = _list_shards(directory, name)
        self.paths = files
        self._files = {path.name: open_file(path) for path in files}
        self._owners: dict[str, _ShardFile] = {}
        for path, file in zip(files, self._files.values(), strict=True):
            for tensor in file.tensors:
                if self._is_elsewhere(tensor, path.name, index):
                    continue
                if tensor in self._owners:
                    other = self._owners[tensor].tensors[tensor].file
                    raise CheckpointError(
                        f"{path}: tensor {quote(tensor)} is in {other} too; keep one of the files"
                    )
                self._owners[tensor] = file
        self._tensors = {name: file.tensors[name] for name, file in self._owners.items()}
        self.unlisted = frozenset(self._owners.keys() - index.keys()) if index else frozenset[str]()
        """Tensors that an index does not name: what another model left behind in the files."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Everything the files hold."""
        return self._tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows of one tensor."""
        return self._owners[name].read(name, start, stop)

    def release(self, name: str) -> None:
        """Give the tensor's pages back."""
        self._owners[name].release(name)

    def close(self) -> None:
        """Unmap every file once no view is left."""
        for file in self._files.values():
            file.close()

    def _is_elsewhere(self, tensor: str, file: str, index: Mapping[str, str]) -> bool:
        """Tell whether the index names another file for a tensor, and that one has it."""
        listed = index.get(tensor, file)
        return listed != file and tensor in self._files[listed].tensors


def _list_shards(directory: Path, name: str) -> tuple[list[Path], Mapping[str, str]]:
    """Return the files of a checkpoint called ``name``, and the file that its index gives every tensor.

    Without an index, or with one of files that are gone, the names of the files decide, and nothing is
    indexed.
    Raises: CheckpointError when the index is malformed, or a file is missing.
    """
    index_path = directory / f"{name}.index.json"
    index = _read_index(index_path) if index_path.is_file() else {}
    files = [directory / file for file in sorted(set(index.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if files and not missing:
        return files, index
    found = find_files(directory, name)
    if not found and missing:
        raise CheckpointError(f"{index_path}: names {missing[0]}, which is not there; fetch that file")
    return found or [directory / name], {}


def find_files(directory: Path, name: str) -> list[Path]:
    """Return the files of a checkpoint called ``name`` by their names alone: one file, or numbered shards.

    Raises: CheckpointError when some of the shards are missing.
    """
    if (directory / name).is_file():
        return [directory / name]
    stem, _, suffix = name.rpartition(".")
    shards = sorted(path for path in directory.glob(f"{stem}-*.{suffix}") if _SHARD_NUMBER.search(path.name))
    counts = {int(number[1]) for path in shards for number in _SHARD_NUMBER.finditer(path.name)}
    if len(counts) > 1:
        raise CheckpointError(
            f"{directory}: holds files {stem}-*.{suffix} of several checkpoints and no index that chooses; "
            "fetch the checkpoint into an empty folder"
        )
    if shards and counts != {len(shards)}:
        raise CheckpointError(
            f"{directory}: holds {len(shards)} of the {max(counts)} files {stem}-*.{suffix}; fetch the others"
        )
    return shards


def _read_index(path: Path) -> dict[str, str]:
    """Return the file of every tensor; the files lie in the folder of the index."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map; fetch the file again")
    index: dict[str, str] = {}
    for tensor, file in cast("dict[str, object]", weight_map).items():
        if not isinstance(file, str):
            raise CheckpointError(f"{path}: the file of {quote(tensor)} is {quote(file)}, allowed is a name")
        index[tensor] = file
    try:
        for name in set(index.values()):
            check_plain_name(name)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; fetch the file again") from error
    return index
