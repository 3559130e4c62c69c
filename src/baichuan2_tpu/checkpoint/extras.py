"""Tensors that a checkpoint may hold besides those that its model needs.

Not here: what it needs, and that nothing else is there (``layout``).
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from baichuan2_tpu.checkpoint.source import TensorInfo, TensorSource
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote

__all__ = ["leave_out_extras"]

_BIAS = ".bias"


def leave_out_extras(
    source: TensorSource, needed: Container[str], leftovers: Container[str]
) -> Mapping[str, TensorInfo]:
    """Return the tensors without biases of zeros, which several tools write for every linear.

    Of the ``leftovers``, which no index names, those that are not needed are left out too.

    Raises: CheckpointError for a bias that is not zero.
    """
    tensors: dict[str, TensorInfo] = {}
    for name, info in source.tensors.items():
        is_bias = name.endswith(_BIAS) and f"{name.removesuffix(_BIAS)}.weight" in needed
        if name in leftovers and name not in needed:
            continue
        if not is_bias:
            tensors[name] = info
        elif source.read(name).any():
            raise CheckpointError(
                f"{info.file}: tensor {quote(name)} is a bias that is not zero; baichuan2-tpu runs "
                "models whose linear layers have no bias, such as Baichuan2 and Llama"
            )
    return tensors
