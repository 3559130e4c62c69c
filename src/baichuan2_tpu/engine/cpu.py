"""The CPU engine: native kernels on the quantised integers, and the oracle for every other engine.

Fast mode quantises activations in groups of 64, to 8 bits, and beside 8-bit weights the largest eighth of the
groups to 16 bits; exact mode keeps them in float32. Keys and values are held in int8, one scale per head and
token, or in float16, as in exact mode unless it is told otherwise. All of it is batch-invariant: a sequence's
logits are the same bits whatever else is in the batch, however its tokens are cut into chunks, and with any
number of threads. The vector instruction sets all give the same bits; the portable kernels
have the same integers, but no fused multiply-add of floats.
Not here: the arithmetic (``native/``), reading files (``checkpoint``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu import _native
from baichuan2_tpu.checkpoint.layout import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LAYER_LINEARS,
    LAYER_NORMS,
    layer_prefix,
)
from baichuan2_tpu.checkpoint.weights import Weights
from baichuan2_tpu.config import KvBits, ModelConfig, QuantizationConfig, alibi_slopes, choose_kv_bits
from baichuan2_tpu.engine.base import Chunk, Engine, Sequence
from baichuan2_tpu.engine.checks import (
    check_distinct,
    check_new_sequence,
    check_truncation,
    checked_context,
    checked_tokens,
)
from baichuan2_tpu.engine.packed_file import ByteProgress, PackedFile
from baichuan2_tpu.engine.processors import available_threads
from baichuan2_tpu.errors import BackendError, BackendUnavailable, RequestError

__all__ = ["CpuEngine", "available_kernels"]

_log = logging.getLogger(__name__)

_MAX_SEQUENCES = 256
_MAX_THREADS = 1024
_MAX_HEAD_SIZE = 256  # KvCache::kMaxHeadSize
_MAX_HEADS_PER_KV_HEAD = 48  # kMaxQueries: the queries of one token must fit one task


class CpuSequence(Sequence):
    """One sequence of a ``CpuEngine``; its cache reserves the whole context and touches what it uses."""

    def __init__(self, engine: CpuEngine, native: _native.Sequence) -> None:
        self._engine = engine
        self._native: _native.Sequence | None = native

    @property
    def length(self) -> int:
        """Number of tokens whose keys and values are held."""
        return self.native.length

    @property
    def native(self) -> _native.Sequence:
        """The native sequence.

        Raises: BackendError after ``close()``.
        """
        if self._native is None:
            raise BackendError("this sequence is closed; open a new one")
        return self._native

    def belongs_to(self, engine: CpuEngine) -> bool:
        """Tell whether this sequence was opened by ``engine``."""
        return self._engine is engine

    def truncate(self, length: int) -> None:
        """Forget every token from ``length`` on."""
        check_truncation(self, length)
        self.native.truncate(length)

    def copy_prefix(self, source: Sequence, length: int) -> None:
        """Hold the first ``length`` tokens of another sequence: memory is copied, nothing computed."""
        if not isinstance(source, CpuSequence) or not source.belongs_to(self._engine) or source is self:
            raise RequestError("only another sequence of this engine can be copied")
        check_truncation(source, length)
        self.native.copy_prefix(source.native, length)

    def close(self) -> None:
        """Free the cache."""
        if self._native is not None:
            self._native = None
            self._engine.forget(self)


class CpuEngine(Engine):
    """Runs quantised weights on this machine's processor.

    ``context`` defaults to the model's own; ``threads`` to what this process may keep busy; ``kv_bits`` to 8,
    or 16 in exact mode; ``kernels``, one of ``available_kernels()``, to the fastest here. The embedding
    stays in ``weights``, so keep those open. ``packed`` is where the packed weights are looked for, and kept;
    ``progress`` is told the bytes that are packed, written or mapped, and ``notice`` why they could not be
    kept.
    Side effect: weights that were not packed before are packed, one tensor at a time, and each is released
    once it is packed.
    Raises: BackendUnavailable for kernels this processor lacks, a shape the kernels cannot run, or threads
    that the system does not start.
    """

    name = "cpu"
    can_copy = True

    def __init__(  # noqa: PLR0913 - all but the first are optional and go by name
        self,
        weights: Weights,
        *,
        context: int | None = None,
        threads: int | None = None,
        is_exact: bool = False,
        kv_bits: KvBits | None = None,
        kernels: str | None = None,
        packed: PackedFile | None = None,
        progress: ByteProgress | None = None,
        notice: Callable[[str], None] = _log.info,
    ) -> None:
        self.config = weights.config
        self.max_context = checked_context(self.config.max_context, context)
        self.max_sequences = _MAX_SEQUENCES
        self.candidates = self.config.vocabulary_size
        self.threads = _check_threads(threads)
        self.is_exact = is_exact
        self.kv_bits = choose_kv_bits(kv_bits, is_exact=is_exact)
        self._sequences: set[CpuSequence] = set()
        self._shape = _native_shape(self.config, self.max_context, self.kv_bits)
        if kernels is not None and kernels not in _native.kernel_names():
            raise BackendUnavailable(
                f"no kernels named {kernels!r} here; this processor runs {', '.join(_native.kernel_names())}"
            )
        self._model: _native.Model | None = None
        self._model = model = self._open(kernels or "", packed, progress)
        if not model.is_packed:
            _pack(model, weights, progress)
            failure = None if packed is None else packed.keep(model.packed_parts(), progress)
            if failure is not None:
                notice(f"the packed weights are not kept for the next start: {failure}")
        _set_floats(model, weights)
        self.kernels = model.kernels
        self.weight_bytes = model.weight_bytes

    def open_sequence(self) -> CpuSequence:
        """Return a new, empty sequence."""
        self._open_model()
        check_new_sequence(len(self._sequences), self.max_sequences)
        sequence = CpuSequence(self, _native.Sequence(self._shape))
        self._sequences.add(sequence)
        return sequence

    def forward(self, chunks: Items[Chunk]) -> list[NDArray[np.float32]]:
        """Append every chunk's tokens to its sequence and return the logits it asks for."""
        model = self._open_model()
        sequences = [self._check_sequence(chunk) for chunk in chunks]
        check_distinct(sequences)
        tokens = [
            checked_tokens(chunk, max_context=self.max_context, vocabulary_size=self.config.vocabulary_size)
            for chunk in chunks
        ]
        rows = [chunk.logit_rows for chunk in chunks]
        logits = model.forward([sequence.native for sequence in sequences], tokens, rows)
        return np.split(logits, np.cumsum(rows)[:-1])

    @contextmanager
    def profile(self) -> Generator[list[tuple[str, float, int, int]], None, None]:
        """Count what is computed inside ``with``, and put it into the list at the end.

        An item is a kind of work: its name, wall time in seconds, bytes read, and multiplications.
        """
        model, works = self._open_model(), list[tuple[str, float, int, int]]()
        model.set_profile(True)
        try:
            yield works
        finally:
            works += model.profile()
            model.set_profile(False)

    def forget(self, sequence: CpuSequence) -> None:
        """Stop counting a closed sequence as open."""
        self._sequences.discard(sequence)

    def close(self) -> None:
        """Free the weights and every sequence."""
        for sequence in list(self._sequences):
            sequence.close()
        self._model = None

    def _open(self, kernels: str, packed: PackedFile | None, progress: ByteProgress | None) -> _native.Model:
        """Open the native model over the packed weights, where they were kept, or empty."""
        pages = None if packed is None else packed.find(progress)
        try:
            if pages is not None:
                with suppress(ValueError):  # a file that was cut short
                    return _native.Model(self._shape, self.threads, kernels, self.is_exact, pages)
            return _native.Model(self._shape, self.threads, kernels, self.is_exact)
        except RuntimeError as error:  # of the thread pool
            raise BackendUnavailable(f"{error}; use fewer threads, or raise the limit") from error

    def _open_model(self) -> _native.Model:
        if self._model is None:
            raise BackendError("this engine is closed; open the model again")
        return self._model

    def _check_sequence(self, chunk: Chunk) -> CpuSequence:
        if not isinstance(chunk.sequence, CpuSequence) or not chunk.sequence.belongs_to(self):
            raise RequestError("a chunk's sequence belongs to another engine; open it with this one")
        return chunk.sequence


def available_kernels() -> tuple[str, ...]:
    """Return the names of the kernels that this processor runs, the fastest first."""
    return tuple(_native.kernel_names())


def _check_threads(threads: int | None) -> int:
    if threads is None:
        return available_threads()
    if not 1 <= threads <= _MAX_THREADS:
        raise RequestError(f"{threads} threads are not possible; choose 1 to {_MAX_THREADS}")
    return threads


def _require_quantization(config: ModelConfig) -> QuantizationConfig:
    if config.quantization is None:
        raise BackendUnavailable("the cpu engine runs quantised weights only; run baichuan2 quantize first")
    return config.quantization


def _native_shape(config: ModelConfig, context: int, kv_bits: KvBits) -> _native.ModelShape:
    quantization = _require_quantization(config)
    if config.head_size % 8 or config.head_size > _MAX_HEAD_SIZE:
        raise BackendUnavailable(
            f"a head size of {config.head_size} is not supported: multiples of 8 up to {_MAX_HEAD_SIZE} are"
        )
    if config.heads // config.kv_heads > _MAX_HEADS_PER_KV_HEAD:
        raise BackendUnavailable(
            f"{config.heads} heads over {config.kv_heads} key-value heads are not supported: "
            f"at most {_MAX_HEADS_PER_KV_HEAD} may share one"
        )
    return _native.ModelShape(
        layers=config.layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        vocabulary=config.vocabulary_size,
        context=context,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta if config.position == "rope" else 0.0,
        alibi_slopes=alibi_slopes(config.heads) if config.position == "alibi" else [],
        bits=quantization.bits,
        head_bits=quantization.head_bits,
        kv_bits=kv_bits,
    )


def _pack(model: _native.Model, weights: Weights, progress: ByteProgress | None) -> None:
    """Pack and release the weights of every linear layer."""
    names = list(_linear_names(weights.config))
    for done, (layer, name) in enumerate(names, 1):
        linear = weights.linear(name)
        model.pack(
            layer,
            name.rpartition(".")[2],
            linear.qweight,
            linear.qzeros,
            linear.scales.view(np.uint16),
            linear.group_size,
        )
        del linear
        weights.release(name)
        if progress is not None:
            progress(model.packed_bytes * done // len(names), model.packed_bytes)


def _set_floats(model: _native.Model, weights: Weights) -> None:
    """Copy the norms and release them; the embedding is read in place."""
    for layer, name in _norm_names(weights.config):
        model.set_norm(layer, name.rpartition(".")[2], weights.array(name))
        weights.release(name)
    model.set_embedding(weights.array(EMBEDDING).view(np.uint16))


def _linear_names(config: ModelConfig) -> Iterator[tuple[int, str]]:
    # The head is by far the largest: with it first, memory peaks at 1.02 x the packed size, not 1.15 x.
    yield 0, HEAD
    for layer in range(config.layers):
        for part in LAYER_LINEARS:
            yield layer, f"{layer_prefix(layer)}{part}"


def _norm_names(config: ModelConfig) -> Iterator[tuple[int, str]]:
    for layer in range(config.layers):
        for part in LAYER_NORMS:
            yield layer, f"{layer_prefix(layer)}{part}"
    yield 0, FINAL_NORM
