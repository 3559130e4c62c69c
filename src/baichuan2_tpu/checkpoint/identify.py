"""Tell what lies at a path: a checkpoint, a GGUF file, a bundle, a bmodel without one, or nothing we read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import read_json
from baichuan2_tpu.manifest import MANIFEST_NAME, find_bmodel, is_bundle

__all__ = ["BIN_NAME", "SAFETENSORS_NAME", "CheckpointKind", "has_weights", "identify"]

CheckpointKind = Literal["float", "quantized", "gguf", "bundle", "bmodel"]

SAFETENSORS_NAME = "model.safetensors"
BIN_NAME = "pytorch_model.bin"


def identify(path: Path) -> CheckpointKind:
    """Tell what lies at ``path``, from its name, its config.json and the names of its weight files.

    Raises: CheckpointError saying what was looked for.
    """
    if path.is_file() and path.suffix == ".gguf":
        return "gguf"
    if not path.is_dir():
        if path.suffix == ".bmodel" and path.exists():
            raise CheckpointError(f"{path}: is one file of a model; name its folder")
        seen = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}: {seen}, allowed is a directory or a .gguf file")
    if is_bundle(path):
        return "bundle"
    if find_bmodel(path):
        return "bmodel"
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: holds no config.json; name the directory of a checkpoint")
    is_checkpoint = any(has_weights(path, name) for name in (SAFETENSORS_NAME, BIN_NAME))
    if not is_checkpoint and any(path.glob("*.bmodel")):
        raise CheckpointError(f"{path}: is a bundle without its {MANIFEST_NAME}; copy the whole bundle")
    if not is_checkpoint:
        raise CheckpointError(
            f"{path}: holds neither {SAFETENSORS_NAME} nor {BIN_NAME}, nor the .index.json of one; "
            "fetch the weights"
        )
    is_quantized = read_json(path / "config.json").get("quantization_config") is not None
    return "quantized" if is_quantized else "float"


def has_weights(directory: Path, name: str) -> bool:
    """Tell whether a directory holds weights called ``name``, in one file or in shards."""
    return (directory / name).is_file() or (directory / f"{name}.index.json").is_file()
