"""Every quantised type that people have is read as an unpacker reads it that works number by number."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from safetensors.numpy import save_file

from baichuan2_tpu import load
from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.quantize import quantize
from models.ggml_blocks import BLOCK_KINDS, random_blocks, unpack_blocks
from models.tiny_checkpoint import float_weights, rope_config, write_config
from models.tiny_gguf import Block, write_gguf
from models.tiny_tokenizer import write_bpe

Kind = GGMLQuantizationType
Tensors = dict[str, NDArray[np.float32] | Block]

# K-quants have blocks of 256 columns.
CONFIG = rope_config(
    hidden_size=256,
    intermediate_size=256,
    heads=4,
    kv_heads=2,
    head_size=64,
    layers=1,
    vocabulary_size=264,
    is_head_normalized=False,
)
MIXES = {
    "Q4_0": (Kind.Q4_0, Kind.Q6_K),
    "Q4_1": (Kind.Q4_1, Kind.Q8_0),
    "Q5_0": (Kind.Q5_0, Kind.Q8_0),
    "Q5_1": (Kind.Q5_1, Kind.Q5_1),
    "Q8_0": (Kind.Q8_0, Kind.Q8_0),
    "Q2_K": (Kind.Q2_K, Kind.Q3_K),
    "Q4_K_M": (Kind.Q4_K, Kind.Q6_K),
    "Q5_K_M": (Kind.Q5_K, Kind.Q6_K),
}
"""What most matrices of a file have, and the others."""


def mixed_model(mix: str, seed: int) -> tuple[Tensors, dict[str, NDArray[np.float32]]]:
    """Return the tensors of a file, and the floats that they stand for."""
    common, rare = MIXES[mix]
    tensors: Tensors = {}
    floats = float_weights(CONFIG, seed)
    for number, (name, tensor) in enumerate(floats.items()):
        tensors[name] = tensor
        if tensor.ndim > 1:
            kind = rare if "v_proj" in name or "down" in name or "head" in name else common
            blocks = random_blocks(kind, tensor.shape, seed + number)
            tensors[name] = Block(kind, blocks)
            floats[name] = unpack_blocks(kind, blocks)
    return tensors, floats


@pytest.mark.parametrize("kind", BLOCK_KINDS, ids=lambda kind: kind.name)
def test_a_type_is_unpacked_as_its_definition_says(tmp_path: Path, kind: Kind) -> None:
    blocks = random_blocks(kind, (CONFIG.vocabulary_size, CONFIG.hidden_size), 7)
    weights: Tensors = {**float_weights(CONFIG, 0), "model.embed_tokens.weight": Block(kind, blocks)}
    checkpoint = FloatCheckpoint.open(write_gguf(tmp_path / "m.gguf", CONFIG, weights))
    found, expected = checkpoint.read("model.embed_tokens", 1, 9), unpack_blocks(kind, blocks[1:9])
    error = np.abs(found - expected).max()
    assert error <= 1e-6 * np.abs(expected).max(), f"largest error {error}"


@pytest.mark.parametrize("mix", MIXES)
def test_a_file_of_a_type_answers_as_its_floats_do(tmp_path: Path, mix: str) -> None:
    tensors, floats = mixed_model(mix, 1)
    answers: list[list[int]] = []
    notices: list[str] = []
    write_gguf(tmp_path / "m.gguf", CONFIG, tensors)
    quantize(tmp_path / "m.gguf", tmp_path / "gguf", bits=8, notice=notices.append)
    assert ", ".join(kind.name for kind in sorted(set(MIXES[mix]))) in notices[0]
    (tmp_path / "source").mkdir()
    write_config(tmp_path / "source", CONFIG)
    save_file(floats, tmp_path / "source" / "model.safetensors")
    quantize(tmp_path / "source", tmp_path / "float", bits=8)
    for name in ("gguf", "float"):
        (tmp_path / name / "tokenizer.model").unlink(missing_ok=True)
        write_bpe(tmp_path / name)
        with load(tmp_path / name, threads=1, keep_packed=False) as model:
            answers.append(
                list(model.generate([5, 6, 7], max_tokens=8, temperature=0.0, ignore_eos=True).token_ids)
            )
    assert answers[0] == answers[1]
    assert len(answers[0]) == 8
