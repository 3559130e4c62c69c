"""The files of weights in the folder of a checkpoint, opened as one source, whatever tool named them.

Not here: which file of several has a tensor (``shards``), what a tensor means (``layout``).
"""

from __future__ import annotations

from pathlib import Path

from baichuan2_tpu.checkpoint.formats.safetensors_file import SafetensorsFile
from baichuan2_tpu.checkpoint.formats.torch_file import TorchFile
from baichuan2_tpu.checkpoint.shards import ShardedSource, find_files

__all__ = ["BIN_NAME", "SAFETENSORS_NAME", "has_weights", "open_weights"]

SAFETENSORS_NAME = "model.safetensors"
BIN_NAME = "pytorch_model.bin"
_OTHER_KINDS = ("adapter_", "consolidated.")
"""What the names of other safetensors begin with, which may lie beside a checkpoint."""


def has_weights(directory: Path) -> bool:
    """Tell whether a folder holds weights, in one file or in shards, with or without an index.

    Raises: CheckpointError when some of the shards are missing.
    """
    return _find_name(directory) is not None


def open_weights(directory: Path) -> ShardedSource:
    """Open the weights of a folder: safetensors before ``.bin``.

    Raises: CheckpointError when a file is missing or wrong.
    """
    name = _find_name(directory) or SAFETENSORS_NAME
    return ShardedSource(directory, name, TorchFile if name == BIN_NAME else SafetensorsFile)


def _find_name(directory: Path) -> str | None:
    """Return what the weights are called; tools of old called their one file what they liked."""
    for name in (SAFETENSORS_NAME, BIN_NAME):
        if (directory / f"{name}.index.json").is_file() or find_files(directory, name):
            return name
    others = [path.name for path in directory.glob("*.safetensors") if not path.name.startswith(_OTHER_KINDS)]
    return others[0] if len(others) == 1 else None
