"""Checkpoints of compressed-tensors give the weights that a plain unpacker gives, and keep their integers."""

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
from models.foreign_checkpoint import Integers, pack_compressed, write_foreign
from models.tiny_checkpoint import restored_weights

UP = "model.layers.0.mlp.up_proj"
Tensors = dict[str, NDArray[Any]]


def settings(bits: int = 4, group_size: int | None = 128, **others: object) -> dict[str, object]:
    weights = {"num_bits": bits, "type": "int", "group_size": group_size, "strategy": "group"}
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
        **others,
    }


def unpack_compressed(tensors: Tensors, name: str, bits: int, group_size: int) -> NDArray[np.float32]:
    """Compute the weights of one linear, column by column, as signed integers. Shapes: (N, K)."""
    words, scales = tensors[f"{name}.weight_packed"].view(np.uint32), tensors[f"{name}.weight_scale"]
    outputs, inputs = (int(size) for size in tensors[f"{name}.weight_shape"])
    mask, half, per_word = (1 << bits) - 1, 1 << (bits - 1), 32 // bits
    stored = tensors.get(f"{name}.weight_zero_point")
    weights = np.empty((outputs, inputs), np.float32)
    rows = np.arange(outputs)
    for column in range(inputs):
        group = column // group_size
        shift = np.uint32(bits * (column % per_word))
        codes = (words[:, column // per_word] >> shift & np.uint32(mask)).astype(np.int64) - half
        zeros = np.zeros(outputs, np.int64)
        if stored is not None and stored.dtype == np.int8:
            zeros = stored[:, group].astype(np.int64)
        elif stored is not None:
            shifts = (bits * (rows % per_word)).astype(np.uint32)
            zeros = (stored.view(np.uint32)[rows // per_word, group] >> shifts & np.uint32(mask)).astype(
                int
            ) - half
        weights[:, column] = (codes - zeros).astype(np.float32) * scales[:, group].astype(np.float32)
    return weights


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        FloatCheckpoint.open(path)
    return str(caught.value)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [64, 128, -1])
@pytest.mark.parametrize("zeros", ["none", "words", "bytes"])
def test_integers_are_kept(tmp_path: Path, bits: int, group_size: int, zeros: str) -> None:
    expected = write_foreign(
        tmp_path / "m",
        settings(bits, None if group_size == -1 else group_size),
        lambda linear: pack_compressed(linear, zeros=zeros),
        bits=bits,
        group_size=group_size,
        symmetric=zeros == "none",
    )
    stored = load_file(tmp_path / "m/model.safetensors")
    notices: list[str] = []
    quantize(tmp_path / "m", tmp_path / "q", notice=notices.append)
    with QuantizedCheckpoint(tmp_path / "q") as checkpoint:
        kept_size = 64 if group_size == 64 else 128
        assert checkpoint.config.quantization == QuantizationConfig(bits, kept_size)  # pyright: ignore[reportArgumentType]
        restored = restored_weights(checkpoint)
    for name in (UP, "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj"):
        columns = expected[f"{name}.weight"].shape[1]
        unpacked = unpack_compressed(stored, name, bits, columns if group_size == -1 else group_size)
        np.testing.assert_array_equal(restored[f"{name}.weight"], unpacked)
        np.testing.assert_array_equal(restored[f"{name}.weight"], expected[f"{name}.weight"])
    assert (
        f"another tool (compressed-tensors, {bits} bits); the integers of its layers are kept" in notices[0]
    )


@pytest.mark.parametrize("order", [False, True])
def test_columns_in_another_order_are_quantised_again(tmp_path: Path, order: bool) -> None:
    def pack(linear: Integers) -> Tensors:
        groups = linear.groups if order else np.full(linear.groups.size, -1)
        return pack_compressed(linear, zeros="none") | {"weight_g_idx": groups.astype(np.int32)}

    expected = write_foreign(
        tmp_path / "m", settings(group_size=64), pack, group_size=64, symmetric=True, order=order
    )[f"{UP}.weight"]
    checkpoint = FloatCheckpoint.open(tmp_path / "m")
    np.testing.assert_array_equal(checkpoint.read(UP, 9, 77), expected[9:77])
    assert checkpoint.stored is not None
    assert ("desc_act" in checkpoint.stored.reason) == order


def test_scales_that_float16_holds_are_kept_whatever_their_type(tmp_path: Path) -> None:
    expected = write_foreign(
        tmp_path / "m",
        settings(),
        lambda linear: (
            pack_compressed(linear, zeros="none") | {"weight_scale": linear.scales.astype(np.float32)}
        ),
        group_size=128,
        symmetric=True,
    )[f"{UP}.weight"]
    quantize(tmp_path / "m", tmp_path / "q")
    with QuantizedCheckpoint(tmp_path / "q") as checkpoint:
        np.testing.assert_array_equal(restored_weights(checkpoint)[f"{UP}.weight"], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_shape": None}, "weight_shape' is missing beside its neighbours"),
        ({"weight_shape": np.array([256, 0])}, "has 16 words of 32 bits for 0 columns"),
        ({"weight_shape": np.array([256, 1 << 40])}, "has 16 words of 32 bits for 1099511627776 columns"),
        (
            {"weight_shape": np.array([256, 256])},
            "has weights of 2 bits, allowed are 4 and 8; take the float",
        ),
        ({"weight_scale": np.ones((255, 1), np.float16)}, "weight_scale' has shape (255, 1), (256, 1) is"),
        ({"weight_scale": np.ones((256, 0), np.float16)}, "has 0 groups"),
        ({"weight_zero_point": np.zeros((256, 1), np.int32)}, "has shape (256, 1), (32, 1) is expected"),
        ({"weight_zero_point": np.zeros((256, 1), np.uint8)}, "is U8, allowed is I32 or I8"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_named(
    tmp_path: Path, changes: dict[str, NDArray[Any] | None], message: str
) -> None:
    write_foreign(
        tmp_path / "m", settings(), lambda linear: pack_compressed(linear, zeros="none"), group_size=128
    )
    path = tmp_path / "m/model.safetensors"
    tensors = load_file(path)
    for part, value in changes.items():
        tensors.pop(f"{UP}.{part}", None)
        if value is not None:
            tensors[f"{UP}.{part}"] = value
    save_file(tensors, path)
    assert message in refusal(tmp_path / "m")


def test_another_format_is_refused_plainly(tmp_path: Path) -> None:
    write_foreign(
        tmp_path / "m",
        settings(format="nvfp4-pack-quantized"),
        lambda linear: pack_compressed(linear, zeros="none"),
        group_size=128,
    )
    assert "(compressed-tensors) in the format 'nvfp4-pack-quantized', allowed is pack-q" in refusal(
        tmp_path / "m"
    )


@pytest.mark.parametrize(("dtype", "layout"), [("I8", "int-quantized"), ("F8_E4M3", "float-quantized")])
def test_weights_of_8_bits_that_are_not_packed_are_refused_plainly(
    tmp_path: Path, dtype: str, layout: str
) -> None:
    write_foreign(
        tmp_path / "m",
        settings(format=layout),
        lambda linear: {"weight": linear.codes.astype(np.int8), "weight_scale": linear.scales},
        group_size=128,
    )
    path = tmp_path / "m/model.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = content[8:start].replace(b'"I8"', f'"{dtype}"'.encode())
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])
    expected = f"(compressed-tensors) in the format '{layout}', which baichuan2-tpu does not read; take the"
    assert expected in refusal(tmp_path / "m")
