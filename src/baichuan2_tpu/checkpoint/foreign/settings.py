"""What a checkpoint says of how another tool quantised it: the method, its settings, and who made it.

Not here: the tensors themselves (``gptq_form`` and its neighbours), our own settings (``config``).
Source: ``QuantizeConfig`` of AutoGPTQ and GPTQModel, ``AwqConfig`` and ``BitsAndBytesConfig`` of
transformers, ``QuantizationConfig`` of compressed-tensors, AutoRound's ``quantization_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import read_json
from baichuan2_tpu.quoting import quote

__all__ = ["FLOAT_ADVICE", "SETTINGS_FILES", "ForeignSettings", "read_quantization"]

FLOAT_ADVICE = "take the float checkpoint, or one with 4 or 8 bits in GPTQ, AWQ or compressed-tensors form"
_SIDE_FILES = ("quantize_config.json", "quant_config.json")
"""Where AutoGPTQ and AutoAWQ kept the settings before ``config.json`` had a place for them."""

SETTINGS_FILES = ("config.json", *_SIDE_FILES)
"""All files that say what the weights are."""

_MOST_GROUP = 1 << 17
_TITLES = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "auto-round": "AutoRound",
    "intel/auto-round": "AutoRound",
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
}


@dataclass(frozen=True, slots=True)
class ForeignSettings:
    """The settings of one checkpoint; ``directory`` is its folder, for messages."""

    directory: Path
    values: Mapping[str, object]

    @property
    def method(self) -> str:
        """The method's name, in small letters; empty where nothing says it."""
        if self.flag("load_in_4bit") or self.flag("load_in_8bit"):
            return "bitsandbytes"
        return self.text("quant_method", "awq" if "w_bit" in self.values else "gptq")

    @property
    def title(self) -> str:
        """The method and the program that wrote the files, for people: "GPTQ by gptqmodel:1.9.0"."""
        title = _TITLES.get(self.method, quote(self.method, 40))
        tool = self._tool()
        return f"{title} by {tool}" if tool else title

    def refuse(self, problem: str, advice: str = FLOAT_ADVICE) -> CheckpointError:
        """Make the exception for a checkpoint that cannot be used."""
        return CheckpointError(
            f"{self.directory}: was quantised by another tool ({self.title}) {problem}; {advice}"
        )

    def text(self, key: str, default: str = "") -> str:
        """Return a setting that is a text, in small letters."""
        value = self.values.get(key)
        return value.lower() if isinstance(value, str) else default

    def flag(self, key: str) -> bool:
        """Tell whether a setting is true."""
        return self.values.get(key) is True

    def group_size(self) -> int | None:
        """Return the columns of a group; None for one group per row.

        Raises: CheckpointError.
        """
        size = self.values.get("group_size", self.values.get("q_group_size"))
        if size is None or size == -1:
            return None
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= _MOST_GROUP:
            raise self.refuse(f"with groups of {quote(size)} columns", "fetch the checkpoint again")
        return size

    def group_sizes(self) -> list[int]:
        """Return the columns of a group for every set of layers that compressed-tensors tells apart."""
        sets = self.values.get("config_groups")
        sizes: list[int] = []
        for scheme in cast("dict[str, object]", sets).values() if isinstance(sets, dict) else ():
            weights = cast("dict[str, object]", scheme).get("weights") if isinstance(scheme, dict) else None
            size = cast("dict[str, object]", weights).get("group_size") if isinstance(weights, dict) else None
            if isinstance(size, int) and 0 < size <= _MOST_GROUP:
                sizes.append(size)
        return sizes

    def bits(self) -> int | None:
        """Return the bits per weight; None where nothing says it.

        Raises: CheckpointError for others than 4 and 8.
        """
        bits = self.values.get("bits", self.values.get("w_bit"))
        if bits is not None and bits not in (4, 8):
            raise self.refuse(f"with {quote(bits)} bits per weight, allowed are 4 and 8")
        return None if bits is None else int(cast("int", bits))

    def _tool(self) -> str:
        """Return the program that wrote the files, where it left its name."""
        meta = self.values.get("meta")
        tool = cast("dict[str, object]", meta).get("quantizer") if isinstance(meta, dict) else None
        if isinstance(tool, list):
            tool = next(iter(cast("list[object]", tool)), None)
        tool = tool or self.values.get("provider")
        return quote(tool, 40).strip("'") if isinstance(tool, str) else ""


def read_quantization(directory: Path) -> ForeignSettings | None:
    """Return what the files of a checkpoint say of its quantisation; None where they say nothing.

    Raises: CheckpointError for a file that is not JSON.
    """
    values = read_json(directory / "config.json").get("quantization_config")
    for name in _SIDE_FILES:
        if not isinstance(values, dict) and (directory / name).is_file():
            values = read_json(directory / name)
    return ForeignSettings(directory, cast("dict[str, object]", values)) if isinstance(values, dict) else None
