"""Tell in which form the linears of a checkpoint are, from the names of its tensors and from its settings.

Names decide whether anything is packed: float weights may have settings left over,
and packed ones may have none.
Not here: what is done with the answer (``identify``, ``float_checkpoint``).
Source: AutoRound's ``packing_format``; the formats of GPTQModel's ``FORMAT``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from baichuan2_tpu.checkpoint.foreign.awq_form import AwqForm
from baichuan2_tpu.checkpoint.foreign.compressed_form import CompressedForm
from baichuan2_tpu.checkpoint.foreign.form import LinearForm
from baichuan2_tpu.checkpoint.foreign.gptq_form import GptqForm
from baichuan2_tpu.checkpoint.foreign.settings import ForeignSettings, read_quantization
from baichuan2_tpu.checkpoint.foreign.table_form import pickled_table_form, stored_table_form
from baichuan2_tpu.checkpoint.source import TensorSource
from baichuan2_tpu.quoting import quote

__all__ = ["find_form", "is_packed"]

_PACKED_ENDINGS = (
    ".qweight",
    ".weight_packed",
    ".weight.absmax",
    ".weight.quant_state.0",
    ".SCB",
    ".weight_scale",
    ".weight_scale_inv",
)
_GPTQ_PACKINGS = ("auto_round:auto_gptq", "auto_gptq")
_AWQ_PACKINGS = ("auto_round:auto_awq", "auto_awq")


def is_packed(names: Iterable[str]) -> bool:
    """Tell whether tensors of these names are packed integers, of any form."""
    return any(name.endswith(_PACKED_ENDINGS) for name in names)


def find_form(directory: Path, source: TensorSource) -> LinearForm | None:
    """Return what reads the packed linears of a checkpoint; None where all of its weights are floats.

    Raises: CheckpointError for a form that is not known.
    """
    if not is_packed(source.tensors):
        return None
    settings = read_quantization(directory) or ForeignSettings(directory, {})
    if any(name.endswith(".weight_packed") for name in source.tensors):
        layout = settings.text("format", "pack-quantized")
        if layout != "pack-quantized":
            raise settings.refuse(f"in the format {quote(layout)}, allowed is pack-quantized")
        return CompressedForm(source, settings)
    if any(name.endswith(".weight.quant_state.0") for name in source.tensors):
        return pickled_table_form(source, settings.title)
    if any(name.endswith(".weight.absmax") for name in source.tensors):
        return stored_table_form(source, settings.title)
    if any(name.endswith(".SCB") for name in source.tensors):
        raise settings.refuse("in its 8 bits, which baichuan2-tpu does not read")
    if any(name.endswith(".qweight") for name in source.tensors):
        return _find_words(source, settings)
    layout = settings.text("format", settings.method)
    raise settings.refuse(f"in the format {quote(layout)}, which baichuan2-tpu does not read")


def _find_words(source: TensorSource, settings: ForeignSettings) -> LinearForm:
    """Return the form of linears that are called ``qweight``, which several tools do."""
    packing = settings.text("packing_format")
    if settings.method == "gptq":
        layout = settings.text("checkpoint_format", "gptq")
        if layout in ("gptq", "gptq_v2"):
            return GptqForm(source, settings)
        raise settings.refuse(f"in the format {quote(layout)}, allowed are gptq and gptq_v2")
    if settings.method == "awq":
        layout = settings.text("version", "gemm")
        if layout == "gemm" and settings.bits() in (None, 4):
            return AwqForm(source, settings)
        raise settings.refuse(
            f"in the format {quote(layout)} of {settings.bits() or 4} bits, allowed is gemm of 4 bits"
        )
    if settings.method.endswith("auto-round"):
        if packing in _GPTQ_PACKINGS:
            return GptqForm(source, settings)
        if packing in _AWQ_PACKINGS:
            return AwqForm(source, settings)
    detail = f"in the packing {quote(packing)}" if packing else "in a form"
    raise settings.refuse(f"{detail} that baichuan2-tpu does not read")
