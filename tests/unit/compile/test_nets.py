"""The nets' inputs, outputs and modes; what they compute is tested with the compiler."""

import re
from dataclasses import replace

import pytest

from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.compile.net_weights import Arrays, block_weights, embedding_weights, head_weights
from baichuan2_tpu.compile.nets import Net, block_net, embedding_net, head_net, layers_of
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.shapes import shape_config
from models.tiny_checkpoint import alibi_config, rope_config

ROPE = shape_config("tiny", 4)
ALIBI = alibi_config(heads=6, kv_heads=6, head_size=32, hidden_size=192, intermediate_size=256)
SETTINGS = CompileSettings(
    bits=4,
    head="w8",
    context=100,
    rows=200,
    stages=(Stage(1, 50), Stage(1, 200), Stage(7, 200)),
    layers_per_net=1,
)

ELEMENTS = {"float32": "f32", "float16": "f16", "uint16": "bf16", "uint8": "ui8"}


def signature(net: Net) -> tuple[list[str], list[str]]:
    """Return the types of the arguments and of the results."""
    main = re.search(r"@main\((.*)\) -> \((.*)\) \{", net.text)
    assert main
    return tuple(re.findall(r"tensor<(\w+)>", part) for part in main.groups())  # pyright: ignore[reportReturnType]


def read_weights(net: Net) -> dict[str, str]:
    """Return the type of every weight by its name."""
    names = dict(re.findall(r'#loc(\d+) = loc\("(.+)"\)', net.text))
    weights = re.findall(r'"top.Weight"\(\) : \(\) -> tensor<(\w+)> loc\(#loc(\d+)\)', net.text)
    return {names[loc]: kind for kind, loc in weights}


def assert_weights_are_read(net: Net, arrays: Arrays) -> None:
    """Check that a net reads every array, in the shape and type that it has."""
    read = read_weights(net)
    for name, values in arrays.items():
        shape = "x".join(str(size) for size in values.shape)
        kind = f"{shape}x{ELEMENTS[values.dtype.name]}"
        # A norm is read with the rank of what it multiplies.
        assert read[name] in (kind, f"1x1x{kind}"), name
    assert net.text.count('"top.Weight"') == len(arrays)


@pytest.mark.parametrize("config", [ROPE, ALIBI], ids=["rope", "alibi"])
@pytest.mark.parametrize("history", [50, 200])
def test_a_block_takes_new_tokens_and_the_history_of_its_stage(config: ModelConfig, history: int) -> None:
    net = block_net(config, SETTINGS, 1, Stage(7, history))
    hidden, heads, size = config.hidden_size, config.kv_heads, config.head_size
    positions = [f"1x{history}xsi32"] if config.position == "alibi" else []
    old = f"1x{history}x{heads}x{size}xf32"
    inputs, outputs = signature(net)
    assert inputs == [f"1x7x{hidden}xf32", "1x7xsi32", f"1x1x7x{history + 7}xf32", *positions, old, old]
    assert outputs == [f"1x7x{hidden}xf32", *[f"1x7x{heads}x{size}xf32"] * 2]
    assert (net.name, net.stage, net.has_own_io) == ("block_cache_1", (7, history), True)


@pytest.mark.parametrize("config", [ROPE, ALIBI], ids=["rope", "alibi"])
def test_a_net_of_several_layers_has_a_history_for_each(config: ModelConfig) -> None:
    config = replace(config, layers=5)
    settings = replace(SETTINGS, layers_per_net=3)
    assert [list(layers_of(config, settings, number)) for number in (0, 1)] == [[0, 1, 2], [3, 4]]
    one, (first, last) = (
        block_net(config, SETTINGS, 0, SETTINGS.stages[0]),
        (block_net(config, settings, number, SETTINGS.stages[0]) for number in (0, 1)),
    )
    counts = [tuple(len(part) for part in signature(net)) for net in (one, first, last)]
    shared = counts[0][0] - 2
    assert counts == [(shared + 2, 3), (shared + 6, 7), (shared + 4, 5)]
    assert first.text.count("output_states") == 3


def test_all_stages_read_the_same_arrays() -> None:
    # The table of RoPE had as many positions as the stage had rows: then stages cannot share their weights.
    stages = [read_weights(block_net(ROPE, SETTINGS, 0, stage)) for stage in SETTINGS.stages]
    assert stages[0] == stages[1] == stages[2]
    assert stages[0]["rotary_cos.weight"] == "100x1x32xf32"


def test_nets_differ_in_their_name_alone() -> None:
    first, other = (block_net(ROPE, SETTINGS, number, Stage(1, 200)).text for number in (0, 1))
    assert first != other
    assert first.replace("@block_cache_0", "@block_cache_1") == other


def test_alibi_adds_bias_and_mask_one_after_the_other() -> None:
    # Their sum, added at once, made the compiler use its fused attention with the first head's bias for all.
    text = block_net(ALIBI, SETTINGS, 0, Stage(1, 200)).text
    assert "top.FAttention" not in text
    assert "top.FAttention" in block_net(ROPE, SETTINGS, 0, Stage(1, 200)).text
    references = dict(re.findall(r"(%\d+) = (.+) loc", text))
    (softmax,) = (line for line in references.values() if "top.Softmax" in line)
    masked = references[re.findall(r"%\d+", softmax)[0]]
    biased, mask = (references[name] for name in re.findall(r"%\d+", masked)[:2])
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
    net = block_net(config, settings, 0, Stage(7, 200))
    assert net.mode == mode
    assert_weights_are_read(net, block_weights(RandomWeights(config), settings, 0))


@pytest.mark.parametrize(
    ("output", "results"),
    [("logits", ["512xf32"]), ("token", ["1xf32"]), ("sample", ["64xf32", "64xf32"])],
)
@pytest.mark.parametrize("rows", [1, 16])
def test_a_head_takes_rows_and_gives_what_was_chosen(output: str, results: list[str], rows: int) -> None:
    net = head_net(ROPE, replace(SETTINGS, head_output=output), rows)
    assert signature(net) == ([f"1x{rows}x128xf32"], [f"{rows}x{result}" for result in results])
    assert (net.name, net.mode, net.stage, net.has_own_io) == ("lm_head", "W8F16", (rows, 0), False)
    assert_weights_are_read(net, head_weights(RandomWeights(ROPE), SETTINGS))


def test_a_float_head_is_of_the_settings_type() -> None:
    settings = replace(SETTINGS, head="f16", dtype="bfloat16")
    net = head_net(ROPE, settings)
    assert net.mode == "BF16"
    assert_weights_are_read(net, head_weights(RandomWeights(ROPE), settings))


def test_an_embedding_takes_ids_and_gives_states() -> None:
    net = embedding_net(ROPE, SETTINGS, 7)
    assert signature(net) == (["1x7xsi32"], ["1x7x128xf32"])
    assert (net.name, net.mode, net.stage, net.has_own_io) == ("embedding", "F16", (7, 0), False)
    assert_weights_are_read(net, embedding_weights(RandomWeights(ROPE), SETTINGS))


def test_grouped_heads_have_a_history_of_their_own_size() -> None:
    config = rope_config(hidden_size=192, heads=6, kv_heads=2, head_size=64)
    inputs, _ = signature(block_net(config, SETTINGS, 0, Stage(1, 200)))
    assert inputs[3] == "1x200x2x64xf32"
