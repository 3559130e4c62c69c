import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from baichuan2_tpu.checkpoint.packing import dequantize
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize import quantize
from models.tiny_checkpoint import rope_config, write_official

UP = "model.layers.0.mlp.up_proj"
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("quantized")
    quantize(write_official(directory / "float", rope_config()), directory / "q", bits=4, method="search")
    return directory / "q"


def copy_with(made: Path, target: Path, change: Callable[[Tensors], object]) -> Path:
    """Copy a quantised checkpoint into one file, as another tool would write it, with a change."""
    tensors: Tensors = {}
    for shard in sorted(made.glob("*.safetensors")):
        tensors |= load_file(shard)
    change(tensors)
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text((made / "config.json").read_text())
    return target


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        QuantizedCheckpoint(path)
    return str(caught.value)


def test_arrays_are_of_the_promised_types_and_survive_release(made: Path) -> None:
    with QuantizedCheckpoint(made) as checkpoint:
        assert checkpoint.path == made
        assert checkpoint.array("model.embed_tokens").dtype == np.float16
        assert checkpoint.array("model.norm").dtype == np.float32
        linear = checkpoint.linear(UP)
        assert (linear.qweight.shape, linear.qzeros.shape) == ((16, 192), (2, 24))
        assert (linear.scales.shape, linear.scales.dtype) == ((2, 192), np.float16)
        assert (linear.bits, checkpoint.linear("lm_head").bits) == (4, 8)
        before = dequantize(linear)
        checkpoint.release(UP)
        np.testing.assert_array_equal(dequantize(checkpoint.linear(UP)), before)


def test_zeros_lie_where_every_reader_agrees(made: Path) -> None:
    checkpoint = QuantizedCheckpoint(made)
    stored = checkpoint.linear(UP).qzeros.view(np.uint8)
    # 15 would be zero -1 to readers that do not wrap around.
    assert max((stored & 15).max(), (stored >> 4).max()) < 15


def test_a_checkpoint_of_another_tool_is_read(made: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("g_idx")]:
            del tensors[name]
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)
        tensors[f"{UP}.scales"] = tensors[f"{UP}.scales"].astype(np.float32)

    ours, theirs = QuantizedCheckpoint(made), QuantizedCheckpoint(copy_with(made, tmp_path / "q", change))
    assert theirs.array("model.norm").dtype == np.float32
    assert theirs.linear(UP).scales.dtype == np.float16
    np.testing.assert_array_equal(dequantize(theirs.linear(UP)), dequantize(ours.linear(UP)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{UP}.qzeros"), f"tensor '{UP}.qzeros' of shape (2, 24) is missing"),
        (lambda t: t.pop("lm_head.qweight"), "tensor 'lm_head.qweight' of shape (32, 320) is missing"),
        (lambda t: t.update(x=np.ones(3)), "tensor 'x' is not part of this model"),
        (
            lambda t: t.update({f"{UP}.scales": np.ones((1, 192), np.float16)}),
            f"tensor '{UP}.scales' has shape (1, 192), config.json asks for (2, 192)",
        ),
        (
            lambda t: t.update({f"{UP}.qweight": np.ones((16, 192), np.float32)}),
            f"tensor '{UP}.qweight' is F32, allowed is I32",
        ),
        (
            lambda t: t.update({f"{UP}.scales": np.ones((2, 192), np.int32)}),
            f"tensor '{UP}.scales' is I32, allowed is BF16 or F16 or F32",
        ),
        (
            lambda t: t.update({f"{UP}.g_idx": np.arange(128, dtype=np.int32)[::-1] // 64}),
            f"tensor '{UP}.g_idx' reorders the columns (desc_act)",
        ),
    ],
)
def test_a_wrong_tensor_is_named_with_its_file(
    made: Path, tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    path = copy_with(made, tmp_path / "q", change)
    found = refusal(path)
    assert message in found
    assert str(path) in found


def test_a_float_checkpoint_says_how_to_quantise_it(tmp_path: Path) -> None:
    assert "first run baichuan2 quantize" in refusal(write_official(tmp_path, rope_config()))


def test_sizes_that_cannot_be_packed_are_refused(made: Path, tmp_path: Path) -> None:
    path = copy_with(made, tmp_path / "q", lambda _: None)
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | {"intermediate_size": 190}))
    assert "mlp.gate_proj has 190 rows and 128 columns, allowed are multiples of 8" in refusal(path)
