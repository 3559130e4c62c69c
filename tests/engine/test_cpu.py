"""The CPU engine against the definition of the model, and against itself on other threads and kernels."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from baichuan2_tpu import _native
from baichuan2_tpu.config import KvBits
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.cpu import CpuEngine, _native_shape  # pyright: ignore[reportPrivateUsage]
from baichuan2_tpu.errors import BackendUnavailable, RequestError
from models.random_model import SHAPES, float_weights, random_weights
from models.reference import reference_logits

BITS: tuple[Literal[4, 8], ...] = (4, 8)


def run(engine: CpuEngine, tokens: list[int]) -> np.ndarray:
    with engine.open_sequence() as sequence:
        return engine.forward([Chunk(sequence, tokens, len(tokens))])[0]


@pytest.mark.parametrize("kernels", _native.kernel_names())
@pytest.mark.parametrize("head_bits", BITS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_the_references(
    shape: str, bits: Literal[4, 8], head_bits: Literal[4, 8], kernels: str
) -> None:
    weights = random_weights(shape, bits, head_bits=head_bits)
    tokens = np.random.default_rng(1).integers(0, weights.config.vocabulary_size, 150).tolist()
    expected = reference_logits(weights.config, float_weights(weights), tokens, kv_dtype=np.float16)
    spread = expected.std()
    # Beside 4-bit weights the fast mode has 8-bit activations, and nothing after the head evens them out.
    fast = 0.08 if head_bits == 4 else 0.06
    modes: list[tuple[bool, KvBits, float]] = [(True, 16, 3e-4), (True, 8, 0.04), (False, 8, fast)]
    for is_exact, kv_bits, allowed in modes:
        with CpuEngine(weights, threads=2, is_exact=is_exact, kv_bits=kv_bits, kernels=kernels) as engine:
            error = np.abs(run(engine, tokens) - expected).max() / spread
        assert error < allowed


@pytest.mark.parametrize("bits", BITS)
def test_logits_do_not_depend_on_the_number_of_threads(bits: Literal[4, 8]) -> None:
    weights = random_weights("grouped", bits)
    tokens = list(range(130))
    results = []
    for threads in (1, 2, 3, 5):
        with CpuEngine(weights, threads=threads) as engine:
            results.append(run(engine, tokens))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_vector_instruction_sets_give_the_same_bits(shape: str, bits: Literal[4, 8]) -> None:
    names = [name for name in _native.kernel_names() if name != "scalar"]
    if len(names) < 2:
        pytest.skip(f"this processor runs {', '.join(_native.kernel_names())}: nothing to compare")
    weights = random_weights(shape, bits)
    tokens = np.random.default_rng(1).integers(0, weights.config.vocabulary_size, 150).tolist()
    for is_exact in (True, False):  # with keys and values in float16, and in int8
        results = []
        for name in names:
            with CpuEngine(weights, threads=2, is_exact=is_exact, kernels=name) as engine:
                results.append(run(engine, tokens))
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(
        RequestError, match="a context of 513 tokens is not possible: this model allows 1 to 512"
    ):
        CpuEngine(random_weights("rope", 4), context=513)


def test_impossible_settings_are_refused() -> None:
    weights = random_weights("rope", 4)
    with pytest.raises(RequestError, match="0 threads are not possible"):
        CpuEngine(weights, threads=0)
    with pytest.raises(
        BackendUnavailable, match=r"no kernels named 'avx1024' here; this processor runs .*scalar"
    ):
        CpuEngine(weights, kernels="avx1024")


TOO_MANY_THREADS = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from models.random_model import random_weights
from baichuan2_tpu.engine.cpu import CpuEngine, _native_shape  # pyright: ignore[reportPrivateUsage]
from baichuan2_tpu.errors import BackendUnavailable
weights = random_weights("rope", 4)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    CpuEngine(weights, threads=1024)
except BackendUnavailable as error:
    print(error)
"""


def test_threads_that_cannot_start_are_an_error_with_their_number() -> None:
    """A thread that did not start ended the process by std::terminate."""
    command = [sys.executable, "-c", TOO_MANY_THREADS, str(Path(__file__).parents[1])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(
        r"only \d+ of 1024 threads started: .+; use fewer threads, or raise the limit\n", result.stdout
    )


HELD_TO_THE_END = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from models.random_model import random_weights
from baichuan2_tpu.engine.cpu import CpuEngine
engine = CpuEngine(random_weights("rope", 4), threads=1)
threading.Thread(target=lambda engine: threading.Event().wait(), args=(engine,), daemon=True).start()
engine.close()
"""


def test_a_daemon_thread_that_holds_an_engine_is_no_fault_at_the_end_of_the_interpreter() -> None:
    # nanobind wrote ten lines about leaked instances to standard error, behind a server's last log line.
    command = [sys.executable, "-c", HELD_TO_THE_END, str(Path(__file__).parents[1])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bytes_of_keys_and_values_are_those_of_the_cache(shape: str) -> None:
    weights = random_weights(shape, 4)
    widths: tuple[KvBits, ...] = (8, 16)
    for kv_bits in widths:
        native = _native_shape(weights.config, 64, kv_bits)
        assert native.kv_bytes_per_token == weights.config.kv_bytes_per_token(kv_bits)


@pytest.mark.parametrize("kv_bits", [8, 16])
def test_a_copied_beginning_continues_as_its_source_would(kv_bits: KvBits) -> None:
    tokens = np.random.default_rng(2).integers(0, 300, 140).tolist()
    with CpuEngine(random_weights("grouped", 4), threads=2, kv_bits=kv_bits) as engine:
        expected = run(engine, tokens)
        with engine.open_sequence() as source, engine.open_sequence() as sequence:
            engine.forward([Chunk(source, [*tokens[:90], 7, 8, 9])])
            sequence.copy_prefix(source, 90)
            continued = engine.forward([Chunk(sequence, tokens[90:], 50)])[0]
    np.testing.assert_array_equal(continued, expected[90:])


def test_the_packed_size_is_counted() -> None:
    """Every 64 weights take a float16 scale and, at 4 bits, half a byte of zero."""
    weights = random_weights("rope", 4)
    with CpuEngine(weights, threads=1) as engine:
        block = 4 * 128 * 128 + 3 * 128 * 192
        head = 320 * 128
        assert engine.weight_bytes == 2 * block // 64 * (32 + 2) + 2 * block // 128 + head // 64 * (64 + 3)
        assert engine.kv_bytes_per_token == 2 * 2 * engine.config.kv_heads * (engine.config.head_size + 4)
