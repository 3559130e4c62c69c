"""A compiled model with ALiBi computes what its definition says, for sequences that share all rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.compile.driver import BuildSettings, compile_bundle
from baichuan2_tpu.engine.base import Chunk, Engine
from baichuan2_tpu.engine.registry import open_engine
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.toolchain import Toolchain
from models.random_model import float_weights
from models.reference import reference_logits
from models.tiny_bundle import TINY_SETTINGS
from models.tiny_checkpoint import alibi_config, write_official

SETTINGS = replace(
    TINY_SETTINGS,
    bits=8,
    context=64,
    rows=64,
    stages=(Stage(1, 32), Stage(16, 32), Stage(1, 64), Stage(16, 64)),
    head_rows=(1, 4),
)
PROMPTS = ([5, 7, 11, 13, 17, 19, 23, 29, 31], [37, 41, 43])
MOST_ERROR = 0.01
"""Of the largest logit; measured: 0.002. Positions that are those of the rows give 0.35."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alibi")
    write_official(folder / "float", alibi_config(vocabulary_size=448, layers=3))
    quantize(folder / "float", folder / "quantized", bits=8)
    return folder / "quantized"


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, toolchain: Toolchain) -> Path:
    folder = checkpoint.with_name("bundle")
    compile_bundle(checkpoint, folder, SETTINGS, BuildSettings(toolchain))
    return folder


def test_sequences_that_share_rows_give_the_logits_of_the_definition(checkpoint: Path, bundle: Path) -> None:
    # The position of a key was that of its row: right only for a sequence that is alone.
    weights = QuantizedCheckpoint(checkpoint)
    with open_engine(identify(bundle), engine="simulator") as engine:
        logits = decode_together(engine, steps=4)
    for prompt, rows in zip(PROMPTS, logits, strict=True):
        tokens = [*prompt, *(int(row.argmax()) for row in rows[:-1])]
        expected = reference_logits(weights.config, float_weights(weights), tokens)[len(prompt) - 1 :]
        error = np.abs(np.stack(rows) - expected).max() / np.abs(expected).max()
        assert error < MOST_ERROR, f"the largest difference is {error:.1e} of the largest logit"


def decode_together(engine: Engine, steps: int) -> list[list[np.ndarray]]:
    """Run the prompts in one step, and then a token of each per step; return the logits of every step."""
    sequences = [engine.open_sequence() for _ in PROMPTS]
    chunks = [Chunk(sequence, prompt, 1) for sequence, prompt in zip(sequences, PROMPTS, strict=True)]
    logits: list[list[np.ndarray]] = [[] for _ in PROMPTS]
    for _ in range(steps):
        for seen, rows in zip(logits, engine.forward(chunks), strict=True):
            seen.append(rows[-1])
        tokens = [[int(seen[-1].argmax())] for seen in logits]
        chunks = [Chunk(sequence, token, 1) for sequence, token in zip(sequences, tokens, strict=True)]
    return logits
