"""The tokens that show a calibrated method what inputs linears get, from the user or from elsewhere.

Where the user gives none, ``scale`` takes the package's conversations, of which it needs little more than the
size of the inputs; ``gptq``, which fits outputs, takes more text, which the model writes.
Not here: what is done with them (``calibrated_run``), how the model writes (``generated_text``), the
conversations (``sample_chats``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.layout import EMBEDDING, linear_bits
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.config import Method, ModelConfig
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.files import hash_blocks
from baichuan2_tpu.quantize.generated_text import BEGINNINGS, generate_windows
from baichuan2_tpu.quantize.linear import convert_array, quantize_linear
from baichuan2_tpu.quantize.plan import Plan
from baichuan2_tpu.quantize.sample_chats import encode_sample_chats
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.template import find_template
from baichuan2_tpu.text.tokenizer import Tokenizer
from baichuan2_tpu.text.user_text import read_user_text, user_text_name

__all__ = ["DEFAULT_TOKENS", "Calibration", "Windows", "open_windows", "write_windows"]

DEFAULT_TOKENS: Mapping[Method, int] = MappingProxyType({"scale": 2048, "gptq": 8192})
_WINDOW_TOKENS = 512
_KV_BYTES = 1 << 30
"""Memory for the windows that are written side by side: four on a 7B, which takes 0.5 MB per token."""

_MOST_AT_ONCE = 32

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What to calibrate with: a UTF-8 text file, or None for the method's own text; how much of it.

    A file called - is standard input.
    Units: ``tokens``, cut into windows of 512, or of the model's context where that is shorter; None leaves
    their number to the method.
    """

    file: Path | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of tokens, or how many of what length the model is still to write.

    Shapes: ``given`` (W, T), or None.
    """

    count: int
    length: int
    given: NDArray[np.int32] | None

    def describe(self) -> dict[str, object]:
        """Describe them for a journal: two runs of the same description use the same tokens."""
        text = None if self.given is None else hash_blocks([self.given.astype("<i4").tobytes()])
        return {"windows": self.count, "tokens": self.length, "text": text}


def open_windows(checkpoint: FloatCheckpoint, calibration: Calibration, method: Method) -> Windows:
    """Read and cut the user's text, or what takes its place.

    Raises: RequestError for a file that cannot be read, is not UTF-8 or holds too few tokens, or for too few
    tokens asked for; CheckpointError for the tokenizer.
    """
    length = min(_WINDOW_TOKENS, checkpoint.config.max_context)
    tokens = DEFAULT_TOKENS[method] if calibration.tokens is None else calibration.tokens
    if tokens < length:
        raise RequestError(f"calibration tokens is {tokens}, allowed is {length} or more")
    count = tokens // length
    if calibration.file is not None:
        return Windows(count, length, _read_windows(checkpoint, calibration.file, count, length))
    if method == "scale":
        return Windows(count, length, _sample_windows(checkpoint, count, length))
    return Windows(count, length, None)


def _sample_windows(checkpoint: FloatCheckpoint, count: int, length: int) -> NDArray[np.int32]:
    """Cut the package's conversations, which are repeated where they are too short. Shapes: -> (W, T)."""
    with checkpoint.tokenizer_files() as folder:
        tokenizer = open_tokenizer(folder)
        ids = encode_sample_chats(tokenizer, find_template(folder, tokenizer))
    _check_ids(checkpoint, ids)
    return np.resize(np.array(ids, np.int32), (count, length))


def _read_windows(checkpoint: FloatCheckpoint, file: Path, count: int, length: int) -> NDArray[np.int32]:
    """Cut the user's text. Shapes: -> (W, T)."""
    name, text = user_text_name(file), read_user_text(file)
    if not text.strip():
        raise RequestError(f"{name} is empty; give a text to calibrate with")
    ids = _open_tokenizer(checkpoint).encode(text)
    if len(ids) < count * length:
        raise RequestError(
            f"{name} holds {len(ids)} tokens, {count * length} are needed; give a longer text, "
            f"or fewer --calibration-tokens, {length} at least"
        )
    _check_ids(checkpoint, ids)
    # Spread over the whole text: its beginning alone may be of one kind.
    starts = np.linspace(0, len(ids) - length, count).astype(np.int64)
    return np.array(ids, np.int32)[starts[:, None] + np.arange(length)]


def write_windows(
    checkpoint: FloatCheckpoint, plan: Plan, windows: Windows, notice: Notice
) -> NDArray[np.int32]:
    """Let the model itself, rounded quickly to the bits of ``plan``, write the windows. Shapes: -> (W, T)."""
    tokenizer = _open_tokenizer(checkpoint)
    beginnings = [tokenizer.encode(text) for text in BEGINNINGS]
    for ids in beginnings:
        _check_ids(checkpoint, ids)
    notice(f"the model writes {windows.count * windows.length} tokens to calibrate with (once)")
    with CpuEngine(_QuickWeights(checkpoint, plan), context=windows.length, kv_bits=16) as engine:
        return generate_windows(
            engine,
            [ids for ids in beginnings if ids],
            tokenizer.stop_ids,
            (windows.count, windows.length),
            batch=max(1, min(_MOST_AT_ONCE, _KV_BYTES // (windows.length * engine.kv_bytes_per_token))),
            report=lambda done: notice(f"{done} of {windows.count} windows of calibration text written"),
        )


class _QuickWeights:
    """A float checkpoint that is quantised tensor by tensor as an engine reads it; see ``Weights``."""

    def __init__(self, checkpoint: FloatCheckpoint, plan: Plan) -> None:
        self._checkpoint = checkpoint
        self._config = plan.config
        self._shapes = {name: size for shard in plan.shards for name, size in shard.linears.items()}
        self._arrays = {name: shape for shard in plan.shards for name, shape in shard.arrays.items()}

    @property
    def config(self) -> ModelConfig:
        """Dimensions, with the quantisation."""
        return self._config

    def linear(self, name: str) -> PackedLinear:
        """Quantise one linear layer."""
        assert self._config.quantization is not None  # noqa: S101 - a plan has one
        return quantize_linear(
            self._checkpoint,
            name,
            self._shapes[name],
            bits=linear_bits(self._config, name),
            group_size=self._config.quantization.group_size,
        )

    def array(self, name: str) -> NDArray[Any]:
        """Return the embedding in float16, or a norm."""
        dtype = np.float16 if name == EMBEDDING else np.float32
        return convert_array(self._checkpoint, name, self._arrays[name], dtype)

    def release(self, name: str) -> None:
        """Give the tensor's pages back."""
        self._checkpoint.release(name)


def _open_tokenizer(checkpoint: FloatCheckpoint) -> Tokenizer:
    with checkpoint.tokenizer_files() as folder:
        return open_tokenizer(folder)


def _check_ids(checkpoint: FloatCheckpoint, ids: list[int]) -> None:
    """Check that the tokenizer belongs to the model."""
    vocabulary = checkpoint.config.vocabulary_size
    if ids and max(ids) >= vocabulary:
        raise CheckpointError(
            f"{checkpoint.path}: the tokenizer gives id {max(ids)}, the model knows 0 to {vocabulary - 1}; "
            "fetch the tokenizer of the model"
        )
