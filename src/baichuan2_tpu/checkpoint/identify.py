"""Tell what lies at a path: a checkpoint, a GGUF file, a bundle, a bmodel without one, or nothing we read.

The answer, ``Located``, is passed on to whatever opens the model; nobody looks at the path a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from baichuan2_tpu.checkpoint.adapter_settings import find_adapter
from baichuan2_tpu.checkpoint.foreign.find_form import is_packed
from baichuan2_tpu.checkpoint.foreign.settings import read_quantization
from baichuan2_tpu.checkpoint.gguf_parts import find_gguf, list_parts
from baichuan2_tpu.checkpoint.layout import HEAD, PACKED_QKV
from baichuan2_tpu.checkpoint.weight_files import BIN_NAME, SAFETENSORS_NAME, has_weights, open_weights
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import ArtifactError, CheckpointError
from baichuan2_tpu.manifest import MANIFEST_NAME, is_bundle

__all__ = [
    "WEIGHT_FILES",
    "Located",
    "ModelKind",
    "find_bmodel",
    "identify",
]

ModelKind = Literal["float", "quantized", "foreign", "gguf", "bundle", "bmodel"]
"""Engines read ``quantized`` as it lies; ``foreign`` is what another tool quantised, to be repacked first."""

WEIGHT_FILES = ("*.safetensors", "*.bin")
"""Patterns of the files of weights in a checkpoint, in one file or in shards."""


@dataclass(frozen=True, slots=True)
class Located:
    """A model on the disk and its kind; ``path`` is a folder, or the first file of a GGUF model."""

    path: Path
    kind: ModelKind
    bmodel: Path | None = None
    """The file that is loaded, where ``kind`` is "bmodel"."""

    @property
    def is_compiled(self) -> bool:
        """Whether it runs on a device, with or without a manifest."""
        return self.kind in ("bundle", "bmodel")


def identify(path: Path, *, needs_weights: bool = True) -> Located:
    """Tell what lies at ``path``, from its name, its config.json and the names of its weight files.

    ``needs_weights`` False is for who only counts: a config.json is enough.
    Raises: CheckpointError saying what was looked for; ArtifactError for several bmodels in one folder.
    """
    if path.is_file() and path.suffix == ".gguf":
        return Located(list_parts(path)[0], "gguf")
    if not path.is_dir():
        if path.suffix == ".bmodel" and path.exists():
            raise CheckpointError(f"{path}: is one file of a model; name its folder")
        state = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}: {state}, allowed is a directory or a .gguf file")
    if is_bundle(path):
        return Located(path, "bundle")
    bmodel = find_bmodel(path)
    if bmodel is not None:
        return Located(path, "bmodel", bmodel)
    gguf = None if any(any(path.glob(kind)) for kind in WEIGHT_FILES) else find_gguf(path)
    if gguf is not None:
        return Located(gguf, "gguf")
    if not (path / "config.json").is_file():
        _check_no_adapter(path)
        raise CheckpointError(f"{path}: holds no config.json; name the directory of a checkpoint")
    if needs_weights:
        _check_weights(path)
    return Located(path, _identify_weights(path, is_opened=needs_weights))


def find_bmodel(path: Path) -> Path | None:
    """Return the bmodel of a folder without manifest, as the vendor ships it; None beside weights.

    Raises: ArtifactError when there are several to choose from.
    """
    is_other = is_bundle(path) or any(any(path.glob(kind)) for kind in WEIGHT_FILES)
    bmodels = [] if is_other else sorted(path.glob("*.bmodel"))
    if len(bmodels) > 1:
        names = ", ".join(bmodel.name for bmodel in bmodels)
        raise ArtifactError(
            f"{path}: holds {len(bmodels)} bmodels ({names}); put each into a folder of its own with "
            "the tokenizer.model, and name that folder"
        )
    return bmodels[0] if bmodels else None


def _identify_weights(path: Path, *, is_opened: bool) -> ModelKind:
    """Tell floats, our own form and that of other tools apart, from settings and names of tensors."""
    if read_quantization(path) is None:
        return "float"
    own = ModelConfig.read(path / "config.json").quantization
    if not is_opened:
        return "quantized" if own is not None else "foreign"
    names = open_weights(path).tensors
    if not is_packed(names):
        return "float"  # the settings were left behind
    if own is None or any(name.endswith(".bias") or f".{PACKED_QKV}." in name for name in names):
        return "foreign"
    return "quantized" if own.form == 2 or f"{HEAD}.qweight" in names else "foreign"


def _check_weights(path: Path) -> None:
    if has_weights(path):
        return
    if any(path.glob("*.bmodel")):
        raise CheckpointError(f"{path}: is a bundle without its {MANIFEST_NAME}; copy the whole bundle")
    _check_no_adapter(path)
    raise CheckpointError(
        f"{path}: holds neither {SAFETENSORS_NAME} nor {BIN_NAME}, nor the .index.json of one; "
        "fetch the weights"
    )


def _check_no_adapter(path: Path) -> None:
    """Refuse a folder that holds an adapter and no model."""
    base = find_adapter(path)
    if base is not None:
        raise CheckpointError(
            f"{path}: is a LoRA adapter, not a model; merge it into the model that it was trained on, "
            f"{base}: baichuan2 quantize MODEL DST --adapter {path}"
        )
