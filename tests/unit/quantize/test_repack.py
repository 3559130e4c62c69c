"""A repacked checkpoint answers as the float weights that another tool's integers stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.foreign.stored_form import StoredForm
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import QuantizationConfig
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.quantize.repack import choose_settings, describe_repacking
from models.foreign_checkpoint import foreign_config, pack_awq, pack_compressed, pack_gptq, write_foreign
from models.reference import reference_logits
from models.tiny_adapter import adapter_matrices, write_adapter
from models.tiny_tokenizer import write_sentencepiece

PROMPT = [1, 17, 250, 3, 99]
GPTQ: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": 64}
AWQ: dict[str, object] = {"quant_method": "awq", "bits": 4, "group_size": 64}
COMPRESSED: dict[str, object] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


@pytest.mark.parametrize(
    ("settings", "pack"),
    [
        (GPTQ, pack_gptq),
        (AWQ, pack_awq),
        (COMPRESSED, lambda linear: pack_compressed(linear, zeros="words")),
    ],
    ids=["gptq", "awq", "compressed-tensors"],
)
def test_greedy_answers_are_those_of_the_float_weights(
    tmp_path: Path, settings: dict[str, object], pack: Callable[..., Any]
) -> None:
    """Zeros of 0 are among them, which are stored as 15."""
    config = foreign_config(is_head_normalized=False)
    weights = write_foreign(tmp_path / "m", settings, pack, config=config, head=True)
    quantize(tmp_path / "m", tmp_path / "q")
    tokens = list(PROMPT)
    with (
        QuantizedCheckpoint(tmp_path / "q") as checkpoint,
        CpuEngine(checkpoint, threads=1, is_exact=True, kv_bits=16) as engine,
        engine.open_sequence() as sequence,
    ):
        assert checkpoint.config.quantization == QuantizationConfig(4, head_bits=4)
        chunk = tokens
        for _ in range(12):
            logits = engine.forward([Chunk(sequence, chunk, 1)])[0][-1]
            expected = reference_logits(config, weights, tokens, kv_dtype=np.float16)[-1]
            assert np.abs(logits - expected).max() < 1e-3 * expected.std()
            chunk = [int(logits.argmax())]
            assert chunk == [int(expected.argmax())]
            tokens += chunk


KEPT = StoredForm("GPTQ", 8, 128, 4)
LOST = StoredForm("GPTQ", 4, 64, None, "its columns are in another order")


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [
        (None, (None, None, None), QuantizationConfig(4)),
        (None, (8, 128, 4), QuantizationConfig(8, 128, 4)),
        (KEPT, (None, None, None), QuantizationConfig(8, 128, 4)),
        (KEPT, (4, 64, 8), QuantizationConfig(4)),
        (LOST, (None, None, None), QuantizationConfig(8)),
        (LOST, (4, None, None), QuantizationConfig(4)),
    ],
)
def test_what_is_not_asked_for_keeps_the_integers_where_it_can(
    stored: StoredForm | None, given: tuple[int | None, int | None, int | None], expected: QuantizationConfig
) -> None:
    assert choose_settings(stored, *given, "search") == expected


def test_a_calibrated_method_chooses_anew() -> None:
    assert choose_settings(KEPT, None, None, None, "gptq") == QuantizationConfig(4, method="gptq")


def test_another_method_is_why_integers_that_would_fit_are_not_kept(tmp_path: Path) -> None:
    """It was said that they cannot be kept for their bits and groups, which are those of the result."""
    write_foreign(tmp_path / "m", GPTQ, pack_gptq)
    checkpoint = FloatCheckpoint.open(tmp_path / "m")
    line = describe_repacking(checkpoint, QuantizationConfig(4, method="gptq"))
    assert line is not None
    assert "its integers are not kept: --method gptq chooses others. Its weights are quantised again" in line


@pytest.mark.parametrize(("given", "method"), [(None, "search"), (8, "search"), (4, "scale")])
def test_four_bits_that_keep_no_integers_are_calibrated(
    tmp_path: Path, given: int | None, method: str
) -> None:
    """Weights of 8 bits were rounded to 4 without the calibration that is the default of 4 bits."""
    settings = {"quant_method": "gptq", "bits": 8, "group_size": 64}
    config = foreign_config(is_head_normalized=False, vocabulary_size=400)
    write_foreign(tmp_path / "m", settings, pack_gptq, bits=8, config=config)
    write_sentencepiece(tmp_path / "m")
    quantize(tmp_path / "m", tmp_path / "q", bits=given)
    quantization = QuantizedCheckpoint(tmp_path / "q").config.quantization
    assert quantization is not None
    assert quantization.method == method


def test_merged_adapters_are_compared_with_nothing(tmp_path: Path) -> None:
    """A comparison with the base was named, which measures what the adapter was trained for."""
    write_foreign(tmp_path / "m", GPTQ, pack_gptq)
    adapter = write_adapter(tmp_path / "a", adapter_matrices(foreign_config(), ("o_proj",)))
    line = describe_repacking(FloatCheckpoint.open(tmp_path / "m", [adapter]), QuantizationConfig(8))
    assert line is not None
    assert line.endswith(
        "adapters are merged into its weights. Its weights are quantised again, to 8 bits in groups of 64"
    )
