"""GPTQ checkpoints of other tools give the weights that a plain unpacker gives, and keep their integers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import Method, QuantizationConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize import quantize
from models.foreign_checkpoint import Integers, foreign_config, pack_gptq, write_foreign
from models.tiny_checkpoint import restored_weights

GPTQ: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False}
Tensors = dict[str, NDArray[Any]]


def unpack_gptq(tensors: Tensors, name: str, bits: int, offset: int) -> NDArray[np.float32]:
    """Compute the weights of one linear from what AutoGPTQ stores, word by word. Shapes: (N, K)."""
    mask, per_word = (1 << bits) - 1, 32 // bits
    words, zero_words = (tensors[f"{name}.{part}"].view(np.uint32) for part in ("qweight", "qzeros"))
    scales, groups = tensors[f"{name}.scales"].astype(np.float32), tensors[f"{name}.g_idx"]
    inputs, outputs = groups.size, words.shape[1]
    weights = np.empty((outputs, inputs), np.float32)
    rows = np.arange(outputs)
    for column, group in enumerate(groups):
        codes = words[column // per_word] >> np.uint32(bits * (column % per_word)) & np.uint32(mask)
        zeros = zero_words[group, rows // per_word] >> (bits * (rows % per_word)).astype(np.uint32)
        zeros = ((zeros & np.uint32(mask)).astype(np.int64) + offset) % (mask + 1)
        weights[:, column] = (codes.astype(np.int64) - zeros).astype(np.float32) * scales[group]
    return weights


def pack_eight(linear: Integers) -> Tensors:
    """Pack integers of 4 bits in 8, as other settings for a layer do."""
    return pack_gptq(replace(linear, bits=8))


def repack(
    source: Path,
    notices: list[str] | None = None,
    bits: int | None = None,
    head_bits: int | None = None,
    method: Method | None = None,
) -> QuantizedCheckpoint:
    target = source.with_name("repacked")
    notices = [] if notices is None else notices
    quantize(source, target, bits=bits, head_bits=head_bits, method=method, notice=notices.append)
    return QuantizedCheckpoint(target)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        FloatCheckpoint.open(path)
    return str(caught.value)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [64, 128, -1])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_integers_are_kept(tmp_path: Path, bits: int, group_size: int, symmetric: bool, version: int) -> None:
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": symmetric}
    expected = write_foreign(
        tmp_path / "m",
        settings | ({"checkpoint_format": "gptq_v2"} if version == 2 else {}),
        lambda linear: pack_gptq(linear, minus_one=version == 1),
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
    )
    stored = load_file(tmp_path / "m/model.safetensors")
    assert identify(tmp_path / "m").kind == "foreign"
    with repack(tmp_path / "m") as checkpoint:
        kept_size = 64 if group_size == 64 else 128
        assert checkpoint.config.quantization == QuantizationConfig(bits, kept_size)  # pyright: ignore[reportArgumentType]
        restored = restored_weights(checkpoint)
        for name, weights in expected.items():
            if name == "lm_head.weight":  # it is float here
                np.testing.assert_allclose(restored[name], weights, atol=0.02)
                continue
            np.testing.assert_array_equal(restored[name], weights, err_msg=name)
            if ".mlp." in name:
                unpacked = unpack_gptq(stored, name.removesuffix(".weight"), bits, 2 - version)
                np.testing.assert_array_equal(restored[name], unpacked, err_msg=name)


def test_what_is_kept_is_told(tmp_path: Path) -> None:
    settings = GPTQ | {"meta": {"quantizer": ["gptqmodel:1.9.0"]}}
    write_foreign(tmp_path / "m", settings, pack_gptq)
    notices: list[str] = []
    repack(tmp_path / "m", notices)
    assert notices == [
        f"{tmp_path / 'm'} was quantised by another tool (GPTQ by gptqmodel:1.9.0, 4 bits); the integers of "
        "its layers are kept, in groups of 64, and its head is quantised to 8 bits"
    ]


def test_a_quantised_head_is_kept_too(tmp_path: Path) -> None:
    settings = GPTQ | {"lm_head": True, "checkpoint_format": "gptq_v2"}
    expected = write_foreign(
        tmp_path / "m", settings, lambda linear: pack_gptq(linear, minus_one=False), head=True
    )
    notices: list[str] = []
    with repack(tmp_path / "m", notices) as checkpoint:
        assert checkpoint.config.quantization == QuantizationConfig(4, 64, 4)
        restored = restored_weights(checkpoint)
    np.testing.assert_array_equal(restored["lm_head.weight"], expected["lm_head.weight"])
    assert "; all of its integers are kept, in groups of 64" in notices[0]


@pytest.mark.parametrize("head", [False, True])
def test_a_vocabulary_that_fills_no_word_is_padded(tmp_path: Path, head: bool) -> None:
    config = foreign_config(is_head_normalized=False, vocabulary_size=323)
    expected = write_foreign(tmp_path / "m", GPTQ, pack_gptq, config=config, head=head)
    with repack(tmp_path / "m") as checkpoint:
        assert checkpoint.config.vocabulary_size == 384
        restored = restored_weights(checkpoint)
    np.testing.assert_allclose(
        restored["lm_head.weight"][:323], expected["lm_head.weight"], atol=0 if head else 0.02
    )
    np.testing.assert_array_equal(
        restored["model.embed_tokens.weight"][:323], expected["model.embed_tokens.weight"]
    )
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert not restored[name][323:].any()


@pytest.mark.parametrize("head", [False, True])
def test_w_pack_is_split_and_the_rows_of_its_head_are_normalised(tmp_path: Path, head: bool) -> None:
    expected = write_foreign(
        tmp_path / "m", GPTQ, pack_gptq, config=foreign_config(), head=head, symmetric=True
    )
    with repack(tmp_path / "m", head_bits=8) as checkpoint:
        restored = restored_weights(checkpoint)
        assert not checkpoint.config.is_head_normalized
    packed = expected["model.layers.1.self_attn.W_pack.weight"]
    parts = [restored[f"model.layers.1.self_attn.{letter}_proj.weight"] for letter in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts), packed)
    rows = expected["lm_head.weight"].astype(np.float64)
    normalised = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    # Integers stay: only the scales are rounded to float16 once more.
    np.testing.assert_allclose(
        restored["lm_head.weight"], normalised, rtol=1e-3 if head else 0, atol=0 if head else 2e-3
    )


@pytest.mark.parametrize(
    ("integers", "reason"),
    [
        ({"group_size": 32}, "its groups are not multiples of 64 columns"),
        ({"order": True}, "its columns are in another order than their groups (desc_act)"),
    ],
)
def test_what_cannot_be_kept_is_quantised_again_to_8_bits(
    tmp_path: Path, integers: dict[str, Any], reason: str
) -> None:
    settings = GPTQ | {"desc_act": True, "group_size": integers.get("group_size", 64)}
    expected = write_foreign(tmp_path / "m", settings, pack_gptq, **integers)
    stored = load_file(tmp_path / "m/model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    floats = FloatCheckpoint.open(tmp_path / "m").read(name)
    np.testing.assert_array_equal(floats, expected[f"{name}.weight"])
    np.testing.assert_array_equal(floats, unpack_gptq(stored, name, 4, 1))
    notices: list[str] = []
    with repack(tmp_path / "m", notices) as checkpoint:
        assert checkpoint.config.quantization == QuantizationConfig(8)
        restored = restored_weights(checkpoint)[f"{name}.weight"]
    assert f"its integers cannot be kept: {reason}. Its weights are quantised again, to 8 bits" in notices[0]
    error = np.square(restored - floats).sum() / np.square(floats).sum()
    assert error < 1e-4


def test_columns_whose_order_is_written_out_in_vain_are_kept(tmp_path: Path) -> None:
    """desc_act with static groups mixes nothing, and readers of ExLlama take zeros alone for no order."""
    expected = write_foreign(tmp_path / "m", GPTQ | {"desc_act": True}, pack_gptq)
    path = tmp_path / "m/model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.g_idx"] = np.zeros_like(tensors[f"{name}.g_idx"])
    save_file(tensors, path)
    with repack(tmp_path / "m") as checkpoint:
        np.testing.assert_array_equal(
            restored_weights(checkpoint)[f"{name}.weight"], expected[f"{name}.weight"]
        )


def test_fewer_bits_are_a_wish_and_told(tmp_path: Path) -> None:
    write_foreign(tmp_path / "m", GPTQ | {"bits": 8}, pack_gptq, bits=8)
    notices: list[str] = []
    with repack(tmp_path / "m", notices, bits=4, method="search") as checkpoint:
        assert checkpoint.config.quantization == QuantizationConfig(4)
    assert (
        "cannot be kept: it has 8 bits in groups of 64. Its weights are quantised again, to 4" in notices[0]
    )


def test_layers_may_have_other_bits_or_none(tmp_path: Path) -> None:
    """AutoRound and GPTQModel leave out linears that lose much, or give them 8 bits; some write no g_idx."""
    bits = iter([8, 4] * 10)
    expected = write_foreign(
        tmp_path / "m", GPTQ, lambda linear: pack_gptq(linear) if next(bits) == 4 else pack_eight(linear)
    )
    path = tmp_path / "m/model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if not name.endswith("g_idx")}
    name = "model.layers.0.mlp.up_proj"
    for part in ("qweight", "qzeros", "scales"):
        del tensors[f"{name}.{part}"]
    tensors[f"{name}.weight"] = expected[f"{name}.weight"]
    save_file(tensors, path)
    notices: list[str] = []
    with repack(tmp_path / "m", notices) as checkpoint:
        assert checkpoint.config.quantization == QuantizationConfig(8)
        restored = restored_weights(checkpoint)
    for letter in "qkvo":
        kept = f"model.layers.1.self_attn.{letter}_proj.weight"
        np.testing.assert_array_equal(restored[kept], expected[kept])
    assert notices[0].endswith("its head is quantised to 8 bits; linears that are floats (1) are quantised")


def test_four_bits_fit_into_eight(tmp_path: Path) -> None:
    expected = write_foreign(tmp_path / "m", GPTQ, pack_gptq)
    name = "model.layers.0.mlp.up_proj.weight"
    with repack(tmp_path / "m", bits=8) as checkpoint:
        np.testing.assert_array_equal(restored_weights(checkpoint)[name], expected[name])


def test_symmetric_zeros_show_how_they_are_stored_whatever_the_label_says(tmp_path: Path) -> None:
    expected = write_foreign(
        tmp_path / "m",
        GPTQ | {"sym": True},  # without checkpoint_format: gptq_v2
        lambda linear: pack_gptq(linear, minus_one=False),
        symmetric=True,
    )
    name = "model.layers.0.mlp.up_proj"
    checkpoint = FloatCheckpoint.open(tmp_path / "m")
    np.testing.assert_array_equal(checkpoint.read(name), expected[f"{name}.weight"])
    assert checkpoint.stored is not None
    assert checkpoint.stored.title == "GPTQ whose zeros are not those of gptq"


def test_auto_round_in_the_packing_of_auto_gptq_is_kept(tmp_path: Path) -> None:
    settings = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4}
    expected = write_foreign(tmp_path / "m", settings | {"group_size": 128}, pack_gptq, group_size=128)
    name = "model.layers.0.mlp.up_proj.weight"
    notices: list[str] = []
    with repack(tmp_path / "m", notices) as checkpoint:
        np.testing.assert_array_equal(restored_weights(checkpoint)[name], expected[name])
    assert "another tool (AutoRound, 4 bits)" in notices[0]


def test_settings_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    write_foreign(tmp_path / "m", {}, pack_gptq, group_size=128)
    values = (tmp_path / "m/config.json").read_text().replace(', "quantization_config": {}', "")
    (tmp_path / "m/config.json").write_text(values)
    (tmp_path / "m/quantize_config.json").write_text('{"bits": 4, "group_size": 128, "desc_act": false}')
    assert identify(tmp_path / "m").kind == "foreign"
    assert FloatCheckpoint.open(tmp_path / "m").stored is not None


def change_tensors(path: Path, **changes: NDArray[Any] | None) -> None:
    """Replace tensors of layer 0's up_proj, or remove those that are None."""
    tensors = load_file(path / "model.safetensors")
    for part, value in changes.items():
        tensors.pop(f"model.layers.0.mlp.up_proj.{part}", None)
        if value is not None:
            tensors[f"model.layers.0.mlp.up_proj.{part}"] = value
    save_file(tensors, path / "model.safetensors")


def test_biases_of_zeros_are_passed_over_and_others_refused(tmp_path: Path) -> None:
    write_foreign(tmp_path / "m", GPTQ, pack_gptq)
    change_tensors(tmp_path / "m", bias=np.zeros(256, np.float16))
    assert FloatCheckpoint.open(tmp_path / "m").stored is not None
    change_tensors(tmp_path / "m", bias=np.full(256, 1e-3, np.float16))
    assert "up_proj.bias' is a bias that is not zero; baichuan2-tpu runs models whose" in refusal(
        tmp_path / "m"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "another tool (GPTQ) with 3 bits per weight, allowed are 4 and 8; take the float"),
        ({"bits": "4"}, "with '4' bits per weight"),
        ({"group_size": 0}, "with groups of 0 columns"),
        ({"group_size": 1 << 40}, "with groups of 1099511627776 columns"),
        ({"checkpoint_format": "marlin"}, "in the format 'marlin', allowed are gptq and gptq_v2"),
        ({"quant_method": "quip"}, "another tool ('quip') in a form that baichuan2-tpu does not read"),
        (
            {"quant_method": "auto-round", "packing_format": "auto_round:gptqv9"},
            "another tool (AutoRound) in the packing 'auto_round:gptqv9' that baichuan2-tpu does not read",
        ),
    ],
)
def test_settings_that_cannot_be_read_are_refused_plainly(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    write_foreign(tmp_path / "m", GPTQ | settings, pack_gptq)
    assert message in refusal(tmp_path / "m")
    assert "correct the file" not in refusal(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qzeros": None}, "up_proj.qzeros' is missing beside its neighbours"),
        ({"scales": np.ones((2, 256), np.int32)}, "up_proj.scales' is I32, allowed is BF16 or F16 or F32"),
        ({"scales": np.ones(256, np.float16)}, "has shape (256,), two dimensions are expected"),
        ({"scales": np.ones((2, 8), np.float16)}, "has shape (2, 8), (2, 256) is expected"),
        ({"qzeros": np.ones((2, 8), np.int32)}, "has shape (2, 8), (2, 32) is expected"),
        ({"g_idx": np.full(128, 2, np.int32)}, "names groups 2 to 2, there are 0 to 1"),
        ({"g_idx": np.arange(128, dtype=np.int32) // 64 - 1}, "names groups -1 to 0, there are 0 to 1"),
        ({"g_idx": np.zeros((2, 64), np.int32)}, "g_idx' has shape (2, 64), (128,) is expected"),
        (
            {"qweight": np.zeros((12, 256), np.int32)},
            "up_proj.qweight' has weights of 3 bits, allowed are 4 and 8",
        ),
        (
            {"g_idx": np.zeros(100, np.int32)},
            "16 words of 32 bits for 100 columns, which is neither 4 nor 8",
        ),
        (
            {"g_idx": None, "scales": np.ones((5, 256), np.float16), "qzeros": np.ones((5, 32), np.int32)},
            "has 5 groups, its 128 columns make 2 of 64",
        ),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_named(
    tmp_path: Path, changes: dict[str, NDArray[Any] | None], message: str
) -> None:
    write_foreign(tmp_path / "m", GPTQ, pack_gptq)
    change_tensors(tmp_path / "m", **changes)
    assert message in refusal(tmp_path / "m")


def test_a_scale_that_is_not_finite_is_named(tmp_path: Path) -> None:
    write_foreign(tmp_path / "m", GPTQ, pack_gptq)
    change_tensors(tmp_path / "m", scales=np.full((2, 256), np.inf, np.float16))
    with pytest.raises(CheckpointError, match=r"a scale of model\.layers\.0\.mlp\.up_proj is not a number"):
        repack(tmp_path / "m")
