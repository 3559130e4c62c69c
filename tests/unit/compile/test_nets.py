"""The nets' inputs, outputs and modes; what they compute is tested with the compiler."""

import re
from dataclasses import replace

import pytest

from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.compile.net_weights import Arrays, block_weights, embedding_weights, head_weights
from baichuan2_tpu.compile.nets import Net, block_net, embedding_net, head_net
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.shapes import shape_config
from models.tiny_checkpoint import alibi_config, rope_config

ROPE = shape_config("tiny", 4)
ALIBI = alibi_config(heads=6, kv_heads=6, head_size=32, hidden_size=192, intermediate_size=256)
SETTINGS = CompileSettings(bits=4, head="w8", context=100, prefill=(7,))

ELEMENTS = {"float32": "f32", "float16": "f16", "uint16": "bf16", "uint8": "ui8"}


def signature(net: Net) -> tuple[list[str], list[str]]:
    """Return the types of the arguments and of the results."""
    found = re.search(r"@main\((.*)\) -> \((.*)\) \{", net.text)
    assert found
    return tuple(re.findall(r"tensor<(\w+)>", part) for part in found.groups())  # pyright: ignore[reportReturnType]


def read_weights(net: Net) -> dict[str, str]:
    """Return the type of every weight by its name."""
    names = dict(re.findall(r'#loc(\d+) = loc\("(.+)"\)', net.text))
    return {names[loc]: kind for kind, loc in re.findall(r"-> tensor<(\w+)> loc\(#loc(\d+)\)", net.text)}


def assert_weights_are_read(net: Net, arrays: Arrays) -> None:
    """Check that a net reads every array, in the shape and type that it has."""
    read = read_weights(net)
    for name, values in arrays.items():
        shape = "x".join(str(size) for size in values.shape)
        wanted = f"{shape}x{ELEMENTS[values.dtype.name]}"
        # A norm is read with the rank of what it multiplies.
        assert read[name] in (wanted, f"1x1x{wanted}"), name
    assert net.text.count('"top.Weight"') == len(arrays)


@pytest.mark.parametrize("config", [ROPE, ALIBI], ids=["rope", "alibi"])
def test_a_block_takes_new_tokens_and_the_whole_history(config: ModelConfig) -> None:
    net = block_net(config, SETTINGS, 3, 7)
    hidden, heads, size = config.hidden_size, config.kv_heads, config.head_size
    history = f"1x100x{heads}x{size}xf32"
    inputs, outputs = signature(net)
    assert inputs == [f"1x7x{hidden}xf32", "1x7xsi32", "1x1x7x107xf32", history, history]
    assert outputs == [f"1x7x{hidden}xf32", *[f"1x7x{heads}x{size}xf32"] * 2]
    assert (net.name, net.tokens, net.history, net.has_own_io) == ("block_cache_3", 7, 100, True)


def test_layers_differ_in_the_name_of_the_net_alone() -> None:
    first, other = (block_net(ROPE, SETTINGS, layer, 1).text for layer in (0, 1))
    assert first != other
    assert first.replace("@block_cache_0", "@block_cache_1") == other


def test_alibi_adds_bias_and_mask_one_after_the_other() -> None:
    # Their sum, added at once, made the compiler use its fused attention with the first head's bias for all.
    text = block_net(ALIBI, SETTINGS, 0, 1).text
    assert "top.FAttention" not in text
    assert "top.FAttention" in block_net(ROPE, SETTINGS, 0, 1).text
    references = dict(re.findall(r"(%\d+) = (.+) loc", text))
    (softmax,) = (line for line in references.values() if "top.Softmax" in line)
    masked = references[re.findall(r"%\d+", softmax)[0]]
    biased, mask = (references[one] for one in re.findall(r"%\d+", masked)[:2])
    assert "top.Add" in masked
    assert "top.Add" in biased
    assert "top.Reshape" in mask


@pytest.mark.parametrize(
    ("bits", "dtype", "mode"),
    [(4, "float16", "W4F16"), (8, "bfloat16", "W8BF16"), (16, "float16", "F16"), (16, "bfloat16", "BF16")],
)
@pytest.mark.parametrize("config", [ROPE, ALIBI], ids=["rope", "alibi"])
def test_a_block_reads_exactly_the_arrays_made_for_it(
    config: ModelConfig, bits: int, dtype: str, mode: str
) -> None:
    config = replace(config, quantization=QuantizationConfig(4 if bits == 4 else 8))
    settings = replace(SETTINGS, bits=bits, dtype=dtype)
    net = block_net(config, settings, 0, 7)
    assert net.mode == mode
    assert_weights_are_read(net, block_weights(RandomWeights(config), settings, 0))


@pytest.mark.parametrize(
    ("output", "results"),
    [("logits", ["1x512xf32"]), ("token", ["1x1xf32"]), ("sample", ["1x64xf32", "1x64xf32"])],
)
def test_a_head_takes_one_row_and_gives_what_was_chosen(output: str, results: list[str]) -> None:
    net = head_net(ROPE, replace(SETTINGS, head_output=output))
    assert signature(net) == (["1x128xf32"], results)
    assert (net.name, net.mode, net.history, net.has_own_io) == ("lm_head", "W8F16", 0, False)
    assert_weights_are_read(net, head_weights(RandomWeights(ROPE), SETTINGS))


def test_a_float_head_is_of_the_settings_type() -> None:
    settings = replace(SETTINGS, head="f16", dtype="bfloat16")
    net = head_net(ROPE, settings)
    assert net.mode == "BF16"
    assert_weights_are_read(net, head_weights(RandomWeights(ROPE), settings))


def test_an_embedding_takes_ids_and_gives_states() -> None:
    net = embedding_net(ROPE, SETTINGS, 7)
    assert signature(net) == (["1x7xsi32"], ["1x7x128xf32"])
    assert (net.name, net.mode, net.tokens, net.has_own_io) == ("embedding", "F16", 7, False)
    assert_weights_are_read(net, embedding_weights(RandomWeights(ROPE), SETTINGS))


def test_grouped_heads_have_a_history_of_their_own_size() -> None:
    config = rope_config(hidden_size=192, heads=6, kv_heads=2, head_size=64)
    inputs, _ = signature(block_net(config, SETTINGS, 0, 1))
    assert inputs[3] == "1x100x2x64xf32"
