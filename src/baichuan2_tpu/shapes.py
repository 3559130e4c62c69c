"""The official dimensions of Baichuan2, by name; "tiny" is for tests and for trying a command.

Not here: names of models (``resolve``), weights of these dimensions (``checkpoint.random_weights``).
Source: the official ``config.json`` of Baichuan2-7B and Baichuan2-13B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.errors import RequestError

__all__ = ["SHAPES", "shape_config"]

_BAICHUAN2_7B = ModelConfig(
    hidden_size=4096,
    intermediate_size=11008,
    layers=32,
    heads=32,
    kv_heads=32,
    head_size=128,
    vocabulary_size=125_696,
    norm_eps=1e-6,
    position="rope",
    rope_theta=10_000.0,
    max_context=4096,
    is_head_tied=False,
    is_head_normalized=False,  # folded into the head when it was quantised
    bos_id=1,
    eos_ids=(2,),
)

SHAPES: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "baichuan2-7b": _BAICHUAN2_7B,
        "baichuan2-13b": replace(
            _BAICHUAN2_7B,
            hidden_size=5120,
            intermediate_size=13_696,
            layers=40,
            heads=40,
            kv_heads=40,
            position="alibi",
        ),
        "tiny": replace(
            _BAICHUAN2_7B,
            hidden_size=128,
            intermediate_size=320,
            layers=2,
            heads=4,
            kv_heads=4,
            head_size=32,
            vocabulary_size=512,
            max_context=1024,
        ),
    }
)
"""Unquantised dimensions by name."""


def shape_config(name: str, bits: Literal[4, 8]) -> ModelConfig:
    """Return the dimensions of a named shape, quantised to ``bits`` bits in groups of 64.

    Raises: RequestError for a name that is not in ``SHAPES``.
    """
    if name not in SHAPES:
        raise RequestError(f"there is no shape {name!r}; choose one of {', '.join(SHAPES)}")
    return replace(SHAPES[name], quantization=QuantizationConfig(bits))
