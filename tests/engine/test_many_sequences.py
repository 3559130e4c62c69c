"""Many sequences at once in the history of a compiled model, on the simulator: each as alone, and apart."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.registry import open_engine
from baichuan2_tpu.files import digest_file
from baichuan2_tpu.manifest import Manifest
from baichuan2_tpu.toolchain import find_simulator
from doubles.sail_double import install_sail
from models.tiny_bundle import TINY_SETTINGS, TinyBundles

PROMPT_LENGTHS = (5, 17, 9, 70)
NEW_TOKENS = 4
SHARE_ALLOWED = 0.02
"""Largest difference between a sequence's logits alone and with others, as a share of their spread."""

OVERFLOWING = 5
"""A token whose embedding is infinite, as one that overflows makes its states."""


@pytest.fixture(scope="module")
def folder(tiny_bundle: TinyBundles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, with one token that is no number."""
    copy = tmp_path_factory.mktemp("overflowing") / "bundle"
    shutil.copytree(tiny_bundle(4).folder, copy)
    manifest = Manifest.read(copy)
    shape = (manifest.model.vocabulary_size, manifest.model.hidden_size)
    rows = np.memmap(copy / "embedding.bin", np.float16, mode="r+", shape=shape)
    rows[OVERFLOWING] = np.inf
    rows.flush()
    files = {**manifest.files, "embedding.bin": digest_file(copy / "embedding.bin")}
    replace(manifest, files=files).write(copy)
    return copy


@pytest.fixture(scope="module", params=["simulator", "sail"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[BmodelEngine]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "sail":
            install_sail(patch, find_simulator())
        with open_engine(identify(folder), engine=request.param) as opened:
            assert isinstance(opened, BmodelEngine)
            yield opened


def random_tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(10, 440, count).tolist()


PROMPTS = [random_tokens(count, seed) for seed, count in enumerate(PROMPT_LENGTHS)]


def answer_alone(engine: BmodelEngine, prompt: list[int]) -> np.ndarray:
    """Return the logits of the greedy answer to a prompt. Shapes: (NEW_TOKENS, V)."""
    with engine.open_sequence() as sequence:
        rows = [engine.forward([Chunk(sequence, prompt)])[0][0]]
        while len(rows) < NEW_TOKENS:
            rows.append(engine.forward([Chunk(sequence, [int(rows[-1].argmax())])])[0][0])
    return np.array(rows)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare logits, and the best tokens where they are far enough from the second."""
    difference = np.abs(found - expected).max()
    assert difference < SHARE_ALLOWED * expected.std(), f"largest difference {difference:.4f}"
    second, best = np.sort(expected, axis=-1)[..., -2:].T
    is_clear = best - second > 2 * difference
    np.testing.assert_array_equal(found.argmax(-1)[is_clear], expected.argmax(-1)[is_clear])


def test_answers_together_are_those_of_each_alone_in_as_many_launches_as_the_longest(
    engine: BmodelEngine,
) -> None:
    """Sequences took turns, with their rows saved and restored: a token of two took 128 copies."""
    alone = [answer_alone(engine, prompt) for prompt in PROMPTS]
    sequences = [engine.open_sequence() for _ in PROMPTS]
    news = PROMPTS
    before = replace(engine.device_counts)
    for step in range(NEW_TOKENS):
        found = engine.forward([Chunk(one, new) for one, new in zip(sequences, news, strict=True)])
        for logits, expected in zip(found, alone, strict=True):
            assert_same(logits[0], expected[step])
        news = [[int(expected[step].argmax())] for expected in alone]
        if step == 0:  # the prompts are read
            before = replace(engine.device_counts)
    nets = -(-engine.config.layers // TINY_SETTINGS.layers_per_net)
    assert engine.device_counts.launches - before.launches == (NEW_TOKENS - 1) * (nets + 1)
    assert engine.device_counts.copies == before.copies
    if engine.name != "sail":
        assert engine.device_counts.waits - before.waits == NEW_TOKENS - 1
    assert engine.row_use.used == sum(PROMPT_LENGTHS) + len(PROMPTS) * (NEW_TOKENS - 1)
    for sequence in sequences:
        sequence.close()


def test_a_launch_changes_no_row_of_another_sequence(engine: BmodelEngine) -> None:
    """Nets gather new keys and values behind the history they were compiled for: a new short chat overwrote
    rows 64 to 79 of a long one."""
    assert engine._loop is not None
    tensors = engine._loop.history.tensors

    def read_rows() -> list[np.ndarray]:
        return [engine._device.download(tensor)[:, other.rows] for tensor in tensors]

    with engine.open_sequence() as other:
        engine.forward([Chunk(other, random_tokens(100, seed=3), 0)])
        before = read_rows()
        for count in (1, 3, 20):
            with engine.open_sequence() as sequence:
                engine.forward([Chunk(sequence, random_tokens(count, seed=4), 0)])
        for rows, expected in zip(read_rows(), before, strict=True):
            np.testing.assert_array_equal(rows, expected)


def test_launches_at_the_end_of_the_memory_change_no_row_of_another_sequence(engine: BmodelEngine) -> None:
    """A stage with all rows gathers what is new behind the last row, where the next tensor might lie."""
    assert engine._loop is not None
    tensors = engine._loop.history.tensors
    total = engine.row_use.total

    def read_rows() -> list[np.ndarray]:
        return [engine._device.download(tensor)[:, rows] for tensor in tensors]

    with ExitStack() as stack:
        for seed, length in enumerate((250, 250)):  # two conversations leave the last rows free
            other = stack.enter_context(engine.open_sequence())
            engine.forward([Chunk(other, random_tokens(length, seed), 0)])
        rows = np.arange(500)
        before = read_rows()
        for count in (total - 500, 1, 3, total - 501):
            with engine.open_sequence() as sequence:
                engine.forward([Chunk(sequence, random_tokens(count, seed=4))])
                assert sequence.rows.max() < total
        for values, expected in zip(read_rows(), before, strict=True):
            np.testing.assert_array_equal(values, expected)


def test_a_shared_beginning_continues_in_two_ways(engine: BmodelEngine) -> None:
    prompt = PROMPTS[3]
    expected = answer_alone(engine, prompt)[0]
    with engine.open_sequence() as first, engine.open_sequence() as second:
        engine.forward([Chunk(first, prompt[:60], 0)])
        second.copy_prefix(first, 50)
        engine.forward([Chunk(second, random_tokens(9, seed=8), 0)])
        second.truncate(50)
        assert engine.row_use.shared == 50
        found = engine.forward([Chunk(first, prompt[60:]), Chunk(second, prompt[50:])])
    assert_same(found[0][0], expected)
    assert_same(found[1][0], expected)


def test_new_rows_are_copied_to_scattered_free_ones(
    engine: BmodelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no run of free rows is long enough for a stage; unless many small launches cost less, as here."""
    monkeypatch.setattr(engine._costs, "_copies_ms", 0.0)
    expected = answer_alone(engine, PROMPTS[1])[0]
    with ExitStack() as stack:
        others = [stack.enter_context(engine.open_sequence()) for _ in range(engine.row_use.total // 8)]
        for first in range(0, len(others), 8):
            engine.forward([Chunk(other, random_tokens(8, first), 0) for other in others[first : first + 8]])
        for other in others[::2]:
            other.truncate(0)
        copies = engine.device_counts.copies
        with engine.open_sequence() as sequence:
            found = engine.forward([Chunk(sequence, PROMPTS[1])])[0]
        assert engine.device_counts.copies > copies
    assert_same(found[0], expected)


def test_a_sequence_that_overflows_ends_alone(engine: BmodelEngine) -> None:
    """An infinite row made every row of its launch no number, and of every later launch."""
    alone = answer_alone(engine, PROMPTS[0])
    with engine.open_sequence() as good, engine.open_sequence() as bad:
        engine.forward([Chunk(good, PROMPTS[0][:3], 0)])
        found = engine.forward([Chunk(good, PROMPTS[0][3:]), Chunk(bad, [11, OVERFLOWING])])
        assert np.isnan(found[1]).all()
        assert_same(found[0][0], alone[0])
        bad.truncate(0)
        after = engine.forward([Chunk(good, [int(alone[0].argmax())]), Chunk(bad, PROMPTS[2])])
    assert_same(after[0][0], alone[1])
    assert_same(after[1][0], answer_alone(engine, PROMPTS[2])[0])
