"""AWQ checkpoints give the weights that a plain unpacker gives, and keep their integers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import QuantizationConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize import quantize
from models.foreign_checkpoint import foreign_config, pack_awq, write_foreign
from models.tiny_checkpoint import restored_weights

AWQ: dict[str, object] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 128,
    "zero_point": True,
    "version": "gemm",
}
UP = "model.layers.0.mlp.up_proj"
# AutoAWQ's reverse order: where outputs 0 to 7 lie in a word, counted from its lowest four bits.
NIBBLES = [0, 4, 1, 5, 2, 6, 3, 7]


def unpack_awq(tensors: dict[str, NDArray[Any]], name: str, group_size: int) -> NDArray[np.float32]:
    """Compute the weights of one linear, output by output. Shapes: (N, K)."""
    words, zero_words = (tensors[f"{name}.{part}"].view(np.uint32) for part in ("qweight", "qzeros"))
    scales = tensors[f"{name}.scales"].astype(np.float32)
    groups = np.arange(words.shape[0]) // group_size
    weights = np.empty((words.shape[1] * 8, words.shape[0]), np.float32)
    for output in range(weights.shape[0]):
        shift = np.uint32(4 * NIBBLES[output % 8])
        codes = (words[:, output // 8] >> shift & np.uint32(15)).astype(np.float32)
        zeros = (zero_words[:, output // 8] >> shift & np.uint32(15)).astype(np.float32)
        weights[output] = (codes - zeros[groups]) * scales[groups, output]
    return weights


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        FloatCheckpoint.open(path)
    return str(caught.value)


@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize("is_official", [False, True])
def test_integers_are_kept(tmp_path: Path, group_size: int, is_official: bool) -> None:
    settings = AWQ | {"group_size": group_size}
    config = foreign_config(is_head_normalized=is_official)
    expected = write_foreign(tmp_path / "m", settings, pack_awq, config=config, group_size=group_size)
    stored = load_file(tmp_path / "m/model.safetensors")
    notices: list[str] = []
    quantize(tmp_path / "m", tmp_path / "q", notice=notices.append)
    with QuantizedCheckpoint(tmp_path / "q") as checkpoint:
        assert checkpoint.config.quantization == QuantizationConfig(4, group_size)
        restored = restored_weights(checkpoint)
    for name in (UP, "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.o_proj"):
        np.testing.assert_array_equal(restored[f"{name}.weight"], expected[f"{name}.weight"])
        np.testing.assert_array_equal(restored[f"{name}.weight"], unpack_awq(stored, name, group_size))
    assert "another tool (AWQ, 4 bits); the integers of its layers are kept" in notices[0]


def test_rows_are_read_from_the_middle_of_a_word(tmp_path: Path) -> None:
    expected = write_foreign(tmp_path / "m", AWQ, pack_awq, group_size=128)[f"{UP}.weight"]
    checkpoint = FloatCheckpoint.open(tmp_path / "m")
    for start, stop in ((0, 3), (5, 29), (250, 256), (8, 8)):
        np.testing.assert_array_equal(checkpoint.read(UP, start, stop), expected[start:stop])


def test_auto_round_in_the_packing_of_awq_is_read(tmp_path: Path) -> None:
    settings = {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "group_size": 128}
    expected = write_foreign(tmp_path / "m", settings, pack_awq, group_size=128)[f"{UP}.weight"]
    np.testing.assert_array_equal(FloatCheckpoint.open(tmp_path / "m").read(UP), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "gemv"}, "another tool (AWQ) in the format 'gemv' of 4 bits, allowed is gemm of 4 bits"),
        ({"bits": 8}, "in the format 'gemm' of 8 bits, allowed is gemm of 4 bits"),
        ({"bits": 3}, "with 3 bits per weight, allowed are 4 and 8"),
        ({"group_size": 32}, "has 2 groups, its 256 columns make 8 of 32"),
    ],
)
def test_settings_that_cannot_be_read_are_refused_plainly(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    write_foreign(tmp_path / "m", AWQ | settings, pack_awq, group_size=128)
    assert message in refusal(tmp_path / "m")


def test_tensors_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    write_foreign(tmp_path / "m", AWQ, pack_awq, group_size=128)
    path = tmp_path / "m/model.safetensors"
    save_file(load_file(path) | {f"{UP}.qzeros": np.zeros((1, 8), np.int32)}, path)
    assert f"'{UP}.qzeros' has shape (1, 8), (1, 32) is expected beside its neighbours" in refusal(
        tmp_path / "m"
    )
