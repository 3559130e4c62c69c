"""Names without what trainers put in front of them, so that ``module.lm_head.weight`` is ``lm_head.weight``.

Source: DistributedDataParallel and DeepSpeed ("module."), torch.compile ("_orig_mod."), PEFT's
``PeftModel.state_dict`` ("base_model.model."), FSDP ("_fsdp_wrapped_module.").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.source import TensorInfo, TensorSource
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote

__all__ = ["PlainNames", "strip_prefixes"]

_PREFIXES = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.")


class PlainNames:
    """The tensors of a source under names without prefixes; see ``TensorSource``.

    Raises: CheckpointError when two tensors would have one name.
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._stored: dict[str, str] = {}
        for name, info in source.tensors.items():
            plain = strip_prefixes(name)
            if plain in self._stored:
                raise CheckpointError(
                    f"{info.file}: tensor {quote(name)} is there as {quote(self._stored[plain])} too; "
                    "save the model once, without its trainer"
                )
            self._stored[plain] = name
        self._tensors = {plain: source.tensors[name] for plain, name in self._stored.items()}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Everything the source holds."""
        return self._tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows of one tensor."""
        return self._source.read(self._stored[name], start, stop)

    def release(self, name: str) -> None:
        """Give the tensor's pages back."""
        self._source.release(self._stored[name])


def strip_prefixes(name: str) -> str:
    """Return a name without what trainers put in front of it, or into it."""
    name = name.replace(_PREFIXES[-1], "")
    while name.startswith(_PREFIXES):
        name = name.removeprefix(next(prefix for prefix in _PREFIXES if name.startswith(prefix)))
    return name
