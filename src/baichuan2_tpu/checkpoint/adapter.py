"""A LoRA adapter that PEFT saved, merged into the float weights of its base while they stream by.

A matrix W becomes W + scale * B A, in float32; a tensor that was trained whole (``modules_to_save``) replaces
the base's. q, k and v may be trained apart or as Baichuan's ``W_pack``, however the base has them.
Not here: the settings (``adapter_settings``).
Source: ``get_peft_model_state_dict`` and ``Linear.get_delta_weight`` of PEFT 0.20.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.adapter_settings import ADAPTER_CONFIG, MERGE_WITH_PEFT, AdapterSettings
from baichuan2_tpu.checkpoint.formats.safetensors_file import SafetensorsFile
from baichuan2_tpu.checkpoint.formats.torch_file import TorchFile
from baichuan2_tpu.checkpoint.layout import (
    EMBEDDING,
    HEAD,
    PACKED_QKV,
    QKV,
    Shape,
    layer_linears,
    layer_prefix,
    llama_shapes,
)
from baichuan2_tpu.checkpoint.source import TensorSource
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import digest_file
from baichuan2_tpu.quoting import quote

__all__ = ["Adapter"]

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_ALLOWED = (
    "lora_A and lora_B of W_pack, q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj and lm_head, "
    "and whole tensors of the model"
)
_PREFIX = "base_model.model."
_FLOATS = ("BF16", "F16", "F32", "F64")
# A trainer that saved the state dict itself left the adapter's name, "default", in it.
_PAIR = re.compile(r"(.+)\.lora_(A|B)(?:\.default)?\.weight")
_WHOLE = re.compile(r"(.+?)(?:\.modules_to_save)?(?:\.default)?\.weight")


class _WeightFile(TensorSource, Protocol):
    """A source that is one file."""

    path: Path


@dataclass(frozen=True, slots=True)
class _Product:
    """What is added to a tensor: ``scale`` times the product of two stored matrices, B from a row on."""

    b: str
    a: str
    first_row: int
    scale: float


class Adapter:
    """An open adapter, checked against the dimensions of its base.

    Raises: CheckpointError naming the file and the tensor, and what to do.
    """

    def __init__(self, directory: Path, config: ModelConfig) -> None:
        self.path = directory
        self.settings = AdapterSettings.read(directory)
        self._file = _open_weights(directory)
        pairs, self._whole = _sort_tensors(self._file)
        self._modules = len(pairs)
        self._products = self._place(pairs, config)
        self._check_whole(config)
        files = (directory / ADAPTER_CONFIG, self._file.path)
        self.record: dict[str, object] = {
            "name": directory.resolve().name,
            "base": self.settings.base,
            "sha256": {file.name: digest_file(file).sha256 for file in files},
        }
        """What identifies the adapter: its folder's name, its base and the digests of its files."""

    def merge(self, name: str, start: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows of a tensor, those from ``start`` on, with the adapter in them.

        Shapes: values (R, K), or (R,) for a norm.
        """
        stop = start + values.shape[0]
        if name in self._whole:
            values = self._read(self._whole[name], start, stop)
        for product in self._products.get(name, ()):
            b = self._read(product.b, product.first_row + start, product.first_row + stop)
            with np.errstate(all="ignore"):  # whoever uses the numbers checks them
                change = np.float32(product.scale) * (b @ self._read(product.a))
                values = np.add(values, change, dtype=np.float32)
        return values

    def describe(self) -> str:
        """Say what is merged."""
        parts = [f"LoRA of rank {self.settings.rank} on {self._modules} modules"] if self._modules else []
        parts += [f"a new {name}" for name in sorted(self._whole)]
        return f"merging {self.path}: {', '.join(parts)}; trained on {self.settings.quoted_base}"

    def _check_whole(self, config: ModelConfig) -> None:
        """Check the tensors that replace those of the base, and that a shared one stays as it is."""
        shapes = llama_shapes(config)
        for name, stored in self._whole.items():
            self._check_shape(stored, shapes.get(f"{name}.weight"))
        for module in self.settings.whole_modules:
            if not any(name == module or name.endswith(f".{module}") for name in self._whole):
                raise CheckpointError(
                    f"{self._file.path}: holds no tensor of {quote(module)}, which {ADAPTER_CONFIG} has in "
                    "modules_to_save; fetch the adapter again"
                )
        changed = {*self._products, *self._whole} & {EMBEDDING, HEAD}
        if config.is_head_tied and changed:
            raise CheckpointError(
                f"{self._file.path}: changes {' and '.join(sorted(changed))}, which the base model has as "
                f"one tensor; {MERGE_WITH_PEFT}"
            )
        if not self._products and not self._whole:
            raise CheckpointError(f"{self._file.path}: holds no tensor; fetch the adapter again")

    def _place(
        self, pairs: Mapping[str, Mapping[str, str]], config: ModelConfig
    ) -> dict[str, tuple[_Product, ...]]:
        """Return what is added to each tensor of the Llama layout."""
        products: dict[str, tuple[_Product, ...]] = {}
        targets = _targets(config)
        for module, pair in pairs.items():
            if module not in targets:
                raise self._unknown(pair["A"] if "A" in pair else pair["B"])
            if len(pair) < 2:
                raise CheckpointError(
                    f"{self._file.path}: {quote(module)} has one of lora_A and lora_B; "
                    "fetch the adapter again"
                )
            (rows, columns), parts = targets[module]
            rank = self.settings.rank_of(module)
            self._check_shape(pair["A"], (rank, columns))
            self._check_shape(pair["B"], (rows, rank))
            for name, first_row in parts.items():
                product = _Product(pair["B"], pair["A"], first_row, self.settings.scale_of(module))
                products[name] = (*products.get(name, ()), product)
        return products

    def _read(self, stored: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        values = np.array(self._file.read(stored, start, stop), np.float32)
        self._file.release(stored)
        return values

    def _check_shape(self, stored: str, shape: Shape | None) -> None:
        """Check a tensor against what the base and the settings say; None is for what the base has not."""
        if shape is None:
            raise self._unknown(stored)
        info = self._file.tensors[stored]
        if info.dtype not in _FLOATS:
            raise CheckpointError(
                f"{info.file}: tensor {quote(stored)} is {info.dtype}, allowed is {', '.join(_FLOATS)}"
            )
        if 0 in info.shape:
            raise CheckpointError(
                f"{info.file}: tensor {quote(stored)} is empty, as ZeRO-3 saves it; gather the weights "
                "and save the adapter again"
            )
        if info.shape != shape:
            raise CheckpointError(
                f"{info.file}: tensor {quote(stored)} has shape {info.shape}, the base model and "
                f"{ADAPTER_CONFIG} ask for {shape}; merge it into the model that it was trained on, "
                f"{self.settings.quoted_base}"
            )

    def _unknown(self, stored: str) -> CheckpointError:
        return CheckpointError(
            f"{self._file.path}: tensor {quote(stored)} cannot be merged into this model (allowed are "
            f"{_ALLOWED}); the adapter was trained on {self.settings.quoted_base}: merge it into that model, "
            f"or {MERGE_WITH_PEFT}"
        )


def _open_weights(directory: Path) -> _WeightFile:
    """Open the adapter's tensors, safetensors before ``.bin``."""
    for name, kind in zip(_WEIGHTS, (SafetensorsFile, TorchFile), strict=True):
        if (directory / name).is_file():
            return kind(directory / name)
    raise CheckpointError(f"{directory}: holds neither {' nor '.join(_WEIGHTS)}; fetch the adapter again")


def _sort_tensors(file: TensorSource) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the stored names of A and B by module, and those of tensors that were trained whole."""
    pairs: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for stored in file.tensors:
        name = stored.removeprefix(_PREFIX)
        if (match := _PAIR.fullmatch(name)) is not None:
            pairs.setdefault(match[1], {})[match[2]] = stored
        else:
            match = _WHOLE.fullmatch(name)
            whole[match[1] if match else name] = stored
    return pairs, whole


def _targets(config: ModelConfig) -> dict[str, tuple[tuple[int, int], dict[str, int]]]:
    """Return every module that LoRA can be on: its (N, K), and its tensors in Llama layout by first row."""
    targets = {HEAD: ((config.vocabulary_size, config.hidden_size), {HEAD: 0})}
    for layer in range(config.layers):
        linears = layer_linears(config, layer)
        targets |= {name: (shape, {name: 0}) for name, shape in linears.items()}
        prefix, parts, rows = layer_prefix(layer), dict[str, int](), 0
        for part in QKV:
            parts[f"{prefix}{part}"] = rows
            rows += linears[f"{prefix}{part}"][0]
        targets[f"{prefix}{PACKED_QKV}"] = ((rows, config.hidden_size), parts)
    return targets
