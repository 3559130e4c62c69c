"""Dimensions of a model and how its weights are quantised, read from and written to ``config.json``.

Not here: weights (``checkpoint``), generation settings (``generate``).
Source: the official ``config.json`` of Baichuan-7B, Baichuan2-7B and Baichuan2-13B; Hugging Face's
``LlamaConfig``; GPTQModel's ``QuantizeConfig`` for ``quantization_config``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from typing_extensions import Self

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import read_json
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.rope_scaling import check_rope_scaling

__all__ = [
    "GROUP_MULTIPLE",
    "HEAD_BITS",
    "KvBits",
    "Method",
    "ModelConfig",
    "Position",
    "QuantizationConfig",
    "alibi_slopes",
    "choose_kv_bits",
    "default_method",
]

Position = Literal["rope", "alibi"]

KvBits = Literal[8, 16]
"""Bits of keys and values on the cpu: int8 with a scale, or float16."""

Method = Literal["search", "scale", "gptq"]
"""How integers are chosen: by the range search alone, or calibrated with a text."""

HEAD_BITS = 8
"""Bits of the output head unless others are asked for: it suffers most at low precision."""

GROUP_MULTIPLE = 64
"""Activations are quantised in groups of 64 columns, so a weight group holds a whole number of them."""

_BAICHUAN1_VOCABULARY = 64_000
_BAICHUAN1_ARCHITECTURES = ["BaiChuanForCausalLM"]  # version 2 spells it BaichuanForCausalLM
_SCALE_BYTES = 4  # float32: Int8Block of native/layout/kv_cache.h
_DEFAULT_ROPE_THETA = 10_000.0
_FOLDED_KEY = "norm_head_folded"
"""Our own key: true when the rows of the head are divided by their norm already."""

_MOST: Mapping[str, int] = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "num_hidden_layers": 1024,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 4096,
    "vocab_size": 1 << 21,
    "max_position_embeddings": 1 << 24,
    "model_max_length": 1 << 24,
    "group_size": 1 << 17,
}
"""Ten times what any model of the family has: above that a file is damaged, or wants to fill the memory."""

_META_KEY = "meta"  # GPTQModel's place for what other readers skip
_METHOD_KEY, _HEAD_BITS_KEY = "method", "head_bits"
_METHODS: Mapping[str, Method] = {"scale": "scale", "gptq": "gptq"}
_FORMS: Mapping[str, Literal[1, 2]] = {"gptq": 1, "gptq_v2": 2}
"""The form of a quantised checkpoint by its ``checkpoint_format``."""

_HEAD_KEY = "lm_head"  # of form 1: what GPTQ readers call the head


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """How the linear layers are stored: asymmetric integers of ``bits`` bits, one scale and zero per group.

    Units: ``group_size`` counts consecutive input columns that share a scale.
    """

    bits: Literal[4, 8]
    group_size: int = 64
    head_bits: Literal[4, 8] = HEAD_BITS
    method: Method = "search"
    """For information only: how the integers were chosen makes no difference to a reader."""

    form: Literal[1, 2] = field(default=2, compare=False)
    """How files hold the same weights. 2, which is written: zeros as they are, the quantised head in a file
    of its own beside a float head. 1: zeros minus one, the quantised head among the other tensors."""

    @classmethod
    def from_json(cls, values: Mapping[str, object], *, file: str = "config.json") -> Self:
        """Read the ``quantization_config`` of a checkpoint in GPTQ form.

        Raises: CheckpointError naming the key, the value and what is allowed.
        """
        keys = _Keys(values, f"{file}: quantization_config")
        keys.require("quant_method", "gptq", ("gptq",))
        keys.require("checkpoint_format", "gptq", tuple(_FORMS))
        keys.require("desc_act", False, (False,))
        group_size = keys.positive_int("group_size")
        if group_size % GROUP_MULTIPLE:
            raise keys.error("group_size", group_size, f"a multiple of {GROUP_MULTIPLE}")
        form = _FORMS[str(values.get("checkpoint_format", "gptq"))]
        meta = keys.mapping(_META_KEY) or {}
        if form == 1:
            head_bits = _head_bits_of_form_1(keys, group_size)
        else:
            head_bits = _Keys(meta, f"{keys.where}.{_META_KEY}").bits(_HEAD_BITS_KEY)
        method = _METHODS.get(str(meta.get(_METHOD_KEY)), "search")
        return cls(keys.bits("bits"), group_size, head_bits, method, form)

    def to_json(self) -> dict[str, object]:
        """Return the ``quantization_config`` of form 2, which other GPTQ readers take."""
        meta: dict[str, object] = {_HEAD_BITS_KEY: self.head_bits}
        if self.method != "search":
            meta[_METHOD_KEY] = self.method
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq_v2",
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": False,
            "desc_act": False,
            _META_KEY: meta,
        }


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Dimensions of a decoder of the Baichuan and Llama family.

    Units: sizes count elements; ``max_context`` counts tokens.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary_size: int
    norm_eps: float
    position: Position
    rope_theta: float
    max_context: int
    is_head_tied: bool
    is_head_normalized: bool
    """True when the rows of the stored head are still to be divided by their norm."""
    bos_id: int | None
    eos_ids: tuple[int, ...]
    quantization: QuantizationConfig | None = None
    """None for floats, and for what other tools quantised in a form that no engine reads."""

    def kv_bytes_per_token(self, bits: KvBits) -> int:
        """Return the bytes of a token's keys and values in all layers; in int8 a head's have a scale."""
        head_bytes = 2 * self.head_size if bits == 16 else self.head_size + _SCALE_BYTES
        return 2 * self.layers * self.kv_heads * head_bytes

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the dimensions from a ``config.json``.

        Raises: CheckpointError naming the file, and the key, the value and what is allowed.
        """
        return cls.from_json(read_json(path), file=str(path))

    @classmethod
    def from_json(cls, values: Mapping[str, object], *, file: str = "config.json") -> Self:
        """Read the dimensions from the values of a ``config.json``.

        Raises: CheckpointError naming ``file``, the key, the value and what is allowed.
        """
        keys = _Keys(values, file)
        keys.require("model_type", None, ("llama", "baichuan"))
        keys.require("hidden_act", "silu", ("silu",))
        check_rope_scaling(values, file)
        heads, kv_heads, head_size = _attention_shape(keys)
        position = _position(keys)
        vocabulary_size = keys.positive_int("vocab_size")
        return cls(
            hidden_size=keys.positive_int("hidden_size"),
            intermediate_size=keys.positive_int("intermediate_size"),
            layers=keys.positive_int("num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            vocabulary_size=vocabulary_size,
            norm_eps=keys.positive_float("rms_norm_eps"),
            position=position,
            rope_theta=_rope_theta(keys),
            max_context=keys.positive_int(_CONTEXT_KEY[position]),
            is_head_tied=keys.boolean("tie_word_embeddings", default=False),
            is_head_normalized=_is_head_normalized(keys),
            bos_id=next(iter(keys.ids("bos_token_id", vocabulary_size)), None),
            eos_ids=keys.ids("eos_token_id", vocabulary_size),
            quantization=_own_quantization(keys),
        )

    def to_json(self) -> dict[str, object]:
        """Return the values of a ``config.json`` that ``from_json`` reads back to an equal config."""
        is_llama = self.position == "rope" and not self.is_head_normalized
        values: dict[str, object] = {
            "architectures": ["LlamaForCausalLM" if is_llama else "BaichuanForCausalLM"],
            "model_type": "llama" if is_llama else "baichuan",
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "vocab_size": self.vocabulary_size,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            _CONTEXT_KEY[self.position]: self.max_context,
            "tie_word_embeddings": self.is_head_tied,
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_ids[0] if len(self.eos_ids) == 1 else list(self.eos_ids),
            "torch_dtype": "float16",
        }
        if not is_llama:
            values |= {
                "position_embedding_type": self.position,
                _FOLDED_KEY: not self.is_head_normalized,
            }
        if self.quantization is not None:
            values["quantization_config"] = self.quantization.to_json()
        return values


def default_method(bits: int) -> Method:
    """Return the method that is used where none is asked for: 8 bits lose next to nothing by any."""
    return "scale" if bits == 4 else "search"


def choose_kv_bits(bits: KvBits | None, *, is_exact: bool = False) -> KvBits:
    """Return the bits of keys and values on the cpu; None is int8, and float16 in the exact mode."""
    return bits or (16 if is_exact else 8)


def alibi_slopes(heads: int) -> list[float]:
    """Return the score's slope of every head.

    Source: Baichuan2-13B ``_get_interleave``; above a power of two every other slope of twice that power.
    """
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4.0 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return slopes + between[: heads - power]


_CONTEXT_KEY: dict[Position, str] = {"rope": "max_position_embeddings", "alibi": "model_max_length"}


class _Keys:
    """Typed look-ups in one JSON object; every complaint names the file, the key and what is allowed."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values = values
        self.where = where

    def error(self, key: str, value: object, allowed: str) -> CheckpointError:
        """Make the exception for a value that is not allowed."""
        seen = quote(value) if key in self.values else "missing"
        return CheckpointError(
            f"{self.where}: {key!r} is {seen}, allowed is {allowed}; it is of another kind of model, "
            "or damaged: fetch it again, or take a Baichuan or Llama model"
        )

    def require(self, key: str, default: object, allowed: tuple[object, ...]) -> None:
        """Check that ``key`` has one of the values that this package can run."""
        value = self.values.get(key, default)
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            raise self.error(key, value, " or ".join(repr(choice) for choice in allowed))

    def positive_int(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        most = _MOST[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise self.error(key, value, f"an integer from 1 to {most}")
        return value

    def positive_float(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.error(key, value, "a number above 0")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def bits(self, key: str, default: Literal[4, 8] | None = None) -> Literal[4, 8]:
        value = self.values.get(key, default)
        if value == 4:
            return 4
        if value == 8:
            return 8
        raise self.error(key, value, "4 or 8")

    def mapping(self, key: str) -> Mapping[str, object] | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, value, "an object")
        return cast("Mapping[str, object] | None", value)

    def ids(self, key: str, vocabulary_size: int) -> tuple[int, ...]:
        """Read a token id, a list of them, or null for none."""
        value: object = self.values.get(key)
        if value is None:
            return ()
        items: list[object] = cast("list[object]", value) if isinstance(value, list) else [value]
        ids = tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool))
        if len(ids) < len(items) or not all(0 <= token_id < vocabulary_size for token_id in ids):
            raise self.error(key, items, f"null, or token ids from 0 to {vocabulary_size - 1}")
        return ids


def _attention_shape(keys: _Keys) -> tuple[int, int, int]:
    """Return the heads, the key and value heads, and the head size."""
    heads, hidden_size = keys.positive_int("num_attention_heads"), keys.positive_int("hidden_size")
    kv_heads = keys.positive_int("num_key_value_heads", heads)
    if heads % kv_heads:
        raise keys.error("num_key_value_heads", kv_heads, f"a divisor of the {heads} attention heads")
    if keys.values.get("head_dim") is None and hidden_size % heads:
        raise keys.error("num_attention_heads", heads, f"a divisor of the hidden size {hidden_size}")
    head_size = keys.positive_int("head_dim", hidden_size // heads)
    if head_size % 2:
        raise keys.error("head_dim", head_size, "an even number")
    return heads, kv_heads, head_size


def _position(keys: _Keys) -> Position:
    """Tell RoPE from ALiBi; only the 13B models have no max_position_embeddings."""
    if keys.values.get("model_type") == "llama":
        return "rope"
    has_positions = keys.values.get("max_position_embeddings") is not None
    value = keys.values.get("position_embedding_type", "rope" if has_positions else "alibi")
    keys.require("position_embedding_type", value, ("rope", "alibi"))
    return "rope" if value == "rope" else "alibi"


def _rope_theta(keys: _Keys) -> float:
    """Read the base of RoPE; transformers 5 keeps it one level down, in rope_parameters."""
    nested = keys.mapping("rope_parameters")
    if nested is not None:
        keys = _Keys(nested, f"{keys.where}: rope_parameters")
    return keys.positive_float("rope_theta", _DEFAULT_ROPE_THETA)


def _is_head_normalized(keys: _Keys) -> bool:
    """Tell whether the head's rows are still to be divided by their norm (version 2 only)."""
    if keys.values.get("model_type") == "llama":
        return False
    is_version_1 = (
        keys.values.get("vocab_size") == _BAICHUAN1_VOCABULARY
        or keys.values.get("architectures") == _BAICHUAN1_ARCHITECTURES
    )
    return not keys.boolean(_FOLDED_KEY, default=is_version_1)


def _own_quantization(keys: _Keys) -> QuantizationConfig | None:
    """Read how the linears are stored, if it is in the form that the engines read."""
    values = keys.mapping("quantization_config")
    if values is None:
        return None
    try:
        return QuantizationConfig.from_json(values, file=keys.where)
    except CheckpointError:
        return None  # another tool's: checkpoint.foreign reads it, or says why it cannot


def _head_bits_of_form_1(keys: _Keys, group_size: int) -> Literal[4, 8]:
    """Return the bits of the head, which ``dynamic`` may give other settings than the layers have."""
    keys.require(_HEAD_KEY, False, (True,))
    head = _head_overrides(keys).get(_HEAD_KEY, {})
    head_keys = _Keys(head, f"{keys.where}.dynamic.{_HEAD_KEY}")
    head_keys.require("group_size", group_size, (group_size,))
    return head_keys.bits("bits", default=keys.bits("bits"))


def _head_overrides(keys: _Keys) -> dict[str, Mapping[str, object]]:
    """Return the settings that ``dynamic`` gives to the head, the only layer that may differ.

    Source: GPTQModel's ``dynamic``: names are patterns, "+:" in front means the same as nothing.
    """
    overrides: dict[str, Mapping[str, object]] = {}
    for pattern, settings in (keys.mapping("dynamic") or {}).items():
        name = pattern.removeprefix("+:").strip("^$").replace("\\.", ".")
        if name != _HEAD_KEY or not isinstance(settings, dict):
            raise keys.error("dynamic", {pattern: settings}, f"an object for {_HEAD_KEY} alone")
        overrides[name] = cast("Mapping[str, object]", settings)
    return overrides
