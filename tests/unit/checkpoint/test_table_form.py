"""The 4 bits of bitsandbytes give the weights that a plain unpacker gives, and are quantised again."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import QuantizationConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize import quantize
from models.bitsandbytes_checkpoint import (
    UP,
    pickled_list,
    write_official_4bits,
    write_transformers_4bits,
)
from models.foreign_checkpoint import foreign_config
from models.tiny_checkpoint import (
    pickled_dict,
    pickled_tensor,
    restored_weights,
    write_bin_zip,
    write_config,
)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        FloatCheckpoint.open(folder)
    return str(caught.value)


def test_the_official_4bits_are_dequantised_and_quantised_again_with_a_word(tmp_path: Path) -> None:
    weights = write_official_4bits(tmp_path / "m")
    assert identify(tmp_path / "m").kind == "foreign"
    checkpoint = FloatCheckpoint.open(tmp_path / "m")
    np.testing.assert_array_equal(checkpoint.read(UP), weights[f"{UP}.weight"])
    np.testing.assert_array_equal(checkpoint.read(UP, 3, 50), weights[f"{UP}.weight"][3:50])
    assert checkpoint.read("model.layers.1.self_attn.k_proj").shape == (128, 128)
    checkpoint.release(UP)
    notices: list[str] = []
    quantize(tmp_path / "m", tmp_path / "q", notice=notices.append)
    with QuantizedCheckpoint(tmp_path / "q") as result:
        assert result.config.quantization == QuantizationConfig(8)
        restored = restored_weights(result)
    error = np.square(restored[f"{UP}.weight"] - weights[f"{UP}.weight"]).sum()
    assert error < 1e-4 * np.square(weights[f"{UP}.weight"]).sum()
    np.testing.assert_allclose(np.linalg.norm(restored["lm_head.weight"], axis=1), 1, rtol=1e-2)
    assert "(bitsandbytes, 4 bits); its integers cannot be kept: its weights are not integers" in notices[0]
    assert "quantised again, to 8 bits in groups of 64; what that costs is measured by" in notices[0]


@pytest.mark.parametrize("nested", [False, True])
def test_the_4_bits_of_transformers_are_dequantised(tmp_path: Path, nested: bool) -> None:
    weights = write_transformers_4bits(tmp_path / "m", nested=nested)
    checkpoint = FloatCheckpoint.open(tmp_path / "m")
    np.testing.assert_array_equal(checkpoint.read(UP), weights)
    np.testing.assert_array_equal(checkpoint.read(UP, 7), weights[7:])


def test_8_bits_of_bitsandbytes_are_refused_plainly(tmp_path: Path) -> None:
    write_transformers_4bits(tmp_path / "m")
    path = tmp_path / "m/model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if "absmax" not in name}
    save_file(tensors | {f"{UP}.SCB": np.ones(256, np.float32)}, path)
    assert "another tool (bitsandbytes) in its 8 bits, which baichuan2-tpu does not read" in refusal(
        tmp_path / "m"
    )


def as_bytes(values: object) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


GOOD = {"blocksize": 64, "shape": [256, 128], "nested_blocksize": 256, "nested_offset": 0.0}
STATE = "quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({STATE: None}, f"'{UP}.weight.{STATE}' is missing"),
        ({STATE: np.zeros(9, np.uint8)}, "is not JSON"),
        ({STATE: as_bytes(GOOD | {"shape": [256]})}, "has the shape (0, 0) in blocks of 64"),
        ({STATE: as_bytes(GOOD | {"shape": [1 << 40, 128]})}, "has the shape (1099511627776, 128)"),
        ({STATE: as_bytes(GOOD | {"shape": [256, 127]})}, "has the shape (256, 127)"),
        ({STATE: as_bytes(GOOD | {"blocksize": 0})}, "has the shape (256, 128) in blocks of 0"),
        ({STATE: as_bytes(GOOD | {"blocksize": "64"})}, "in blocks of 0"),
        ({STATE: as_bytes(GOOD | {"nested_blocksize": 0})}, "has largest values in blocks of 0"),
        ({STATE: as_bytes(GOOD | {"shape": [512, 128]})}, "weight' has 16384 values, 32768 are expected"),
        ({STATE: as_bytes(GOOD | {"blocksize": 128})}, "absmax' has 512 values, 256 are expected"),
        ({"quant_map": np.zeros(15, np.float32)}, "quant_map' has 15 values, 16 are expected"),
        ({"nested_quant_map": None}, "nested_quant_map' is missing"),
        ({"nested_absmax": np.zeros(1, np.float32)}, "nested_absmax' has 1 values, 2 are expected"),
        ({"absmax": np.zeros(512, np.int32)}, "absmax' is I32, allowed is U8"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named(
    tmp_path: Path, changes: dict[str, NDArray[Any] | None], message: str
) -> None:
    write_transformers_4bits(tmp_path / "m")
    path = tmp_path / "m/model.safetensors"
    tensors = load_file(path)
    for part, value in changes.items():
        tensors.pop(f"{UP}.weight.{part}")
        if value is not None:
            tensors[f"{UP}.weight.{part}"] = value
    save_file(tensors, path)
    assert message in refusal(tmp_path / "m")


def looped_list() -> bytes:
    """A list whose only item is itself."""
    return pickle.EMPTY_LIST + b"q\x07" + b"h\x07" + pickle.APPEND


@pytest.mark.parametrize(
    "value",
    [
        pickled_list([]),
        looped_list(),
        pickled_list([pickle.NONE] * 100_000),
        pickled_list([looped_list()]),
    ],
    ids=["empty", "in itself", "long", "of a list in itself"],
)
def test_a_list_that_describes_no_tensor_is_refused(tmp_path: Path, value: bytes) -> None:
    write_config(tmp_path, foreign_config())
    records = [("model.norm.weight.quant_state", value), ("x", pickled_tensor("0", (1,)))]
    write_bin_zip(tmp_path / "pytorch_model.bin", pickled_dict(records), {"0": b"\0\0"})
    assert "is missing" in refusal(tmp_path)
