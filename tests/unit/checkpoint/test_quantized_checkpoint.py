import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from baichuan2_tpu.checkpoint.layout import QUANTIZED_HEAD_FILE
from baichuan2_tpu.checkpoint.packing import dequantize, shift_zeros
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
    """Copy a quantised checkpoint with a change; all but the quantised head goes into one file."""
    tensors: Tensors = {}
    for shard in sorted(made.glob("model-*.safetensors")):
        tensors |= load_file(shard)
    head = load_file(made / QUANTIZED_HEAD_FILE)
    joined = tensors | head
    change(joined)
    target.mkdir()
    save_file({name: joined[name] for name in joined if name not in head}, target / "model.safetensors")
    save_file({name: joined[name] for name in joined if name in head}, target / QUANTIZED_HEAD_FILE)
    (target / "config.json").write_text((made / "config.json").read_text())
    return target


def write_form_1(made: Path, target: Path) -> Path:
    """Write a quantised checkpoint as version 0.1 of this package did: zeros minus one, one kind of head."""

    def change(tensors: Tensors) -> None:
        del tensors["lm_head.weight"]
        for name in [name for name in tensors if name.endswith(".qzeros")]:
            tensors[name] = shift_zeros(tensors[name], 8 if name.startswith("lm_head") else 4, -1)

    path = copy_with(made, target, change)
    tensors = load_file(path / "model.safetensors") | load_file(path / QUANTIZED_HEAD_FILE)
    save_file(tensors, path / "model.safetensors")
    (path / QUANTIZED_HEAD_FILE).unlink()
    values = json.loads((made / "config.json").read_text())
    del values["quantization_config"]["meta"]
    values["quantization_config"] |= {
        "checkpoint_format": "gptq",
        "lm_head": True,
        "dynamic": {"lm_head": {"bits": 8, "group_size": 64}},
    }
    (path / "config.json").write_text(json.dumps(values))
    return path


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


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_move_within_their_bits(bits: int) -> None:
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 5), np.int32)
    zeros, per_word = words.view(np.uint32).astype(np.uint64), 32 // bits
    expected = np.zeros_like(zeros)
    for place in range(per_word):
        lane = (zeros >> np.uint64(place * bits)) + np.uint64(1) & np.uint64(2**bits - 1)
        expected |= lane << np.uint64(place * bits)
    raised = shift_zeros(words, bits, 1)
    np.testing.assert_array_equal(raised.view(np.uint32), expected)
    np.testing.assert_array_equal(shift_zeros(raised, bits, -1), words)


def test_a_checkpoint_of_the_first_form_is_the_same_model(made: Path, tmp_path: Path) -> None:
    old = write_form_1(made, tmp_path / "old")
    with QuantizedCheckpoint(old) as first, QuantizedCheckpoint(made) as second:
        assert first.config == second.config
        assert [path.name for path in first.files] == ["config.json", "model.safetensors"]
        for name in (UP, "lm_head"):
            np.testing.assert_array_equal(dequantize(first.linear(name)), dequantize(second.linear(name)))


def test_a_missing_quantised_head_is_named_with_what_to_do(made: Path, tmp_path: Path) -> None:
    path = copy_with(made, tmp_path / "q", lambda _: None)
    (path / QUANTIZED_HEAD_FILE).unlink()
    message = refusal(path)
    assert f"{path}: has no quantized_head.safetensors, the output head that this program uses" in message
    assert "baichuan2 quantize SRC DST" in message


def test_the_quantised_head_is_one_of_the_files(made: Path) -> None:
    with QuantizedCheckpoint(made) as checkpoint:
        assert made / QUANTIZED_HEAD_FILE in checkpoint.files


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
