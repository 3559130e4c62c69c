"""What can be compiled is said before anything is."""

from dataclasses import replace

import pytest

from baichuan2_tpu.compile.settings import CompileSettings, default_bits, default_head, default_prefill
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.shapes import shape_config
from models.tiny_checkpoint import alibi_config

CONFIG = shape_config("tiny", 4)
SETTINGS = CompileSettings(bits=4, head="w8", context=512, prefill=(16, 64))
FLOATS = replace(CONFIG, quantization=None)


def test_stages_begin_with_a_single_token() -> None:
    assert SETTINGS.stages == (1, 16, 64)


def test_defaults_are_those_of_the_checkpoint() -> None:
    assert (default_bits(CONFIG), default_head(CONFIG)) == (4, "w8")
    assert default_head(replace(CONFIG, quantization=QuantizationConfig(4, head_bits=4))) == "w4"
    assert (default_bits(FLOATS), default_head(FLOATS)) == (16, "f16")
    assert default_prefill(512) == (16, 64, 128, 256)
    assert default_prefill(100) == (16, 64)
    assert default_prefill(8) == ()


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({}, CONFIG),
        ({"bits": 16}, CONFIG),
        ({"bits": 16, "head": "f16"}, FLOATS),
        ({"context": 1, "prefill": ()}, CONFIG),
        ({"context": 1024, "prefill": (2, 1024)}, CONFIG),
    ],
)
def test_what_can_be_compiled_passes(changes: dict[str, object], config: ModelConfig) -> None:
    settings = replace(SETTINGS, **changes)  # pyright: ignore[reportArgumentType] - real fields
    settings.check(config)
    with pytest.raises(RequestError, match="2 devices cannot share the model"):
        replace(settings, devices=2).check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 0}, "context of 0 tokens cannot be compiled: choose 1 to 1024"),
        ({"context": 1025}, "context of 1025 tokens cannot be compiled: choose 1 to 1024"),
        ({"prefill": (1,)}, "prefill stage of 1 tokens .* choose 2 to the context, 512"),
        ({"prefill": (16, 513)}, "prefill stage of 513 tokens .* choose 2 to the context, 512"),
        ({"prefill": (64, 16)}, "prefill stages 64, 16 must rise"),
        ({"prefill": (16, 16)}, "prefill stages 16, 16 must rise"),
        ({"bits": 8}, "blocks have 4 bits and --bits asks for 8; .* choose 4 or 16"),
        ({"head": "w4"}, "head has 8 bits and --head asks for w4; .* --head-bits 4"),
        ({"devices": 2}, "2 devices cannot share the model"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_next_step(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        replace(SETTINGS, **changes).check(CONFIG)  # pyright: ignore[reportArgumentType] - real fields


def test_integers_are_never_made_from_floats() -> None:
    with pytest.raises(RequestError, match=r"4-bit blocks need a quantised checkpoint.*--bits 16"):
        SETTINGS.check(FLOATS)
    with pytest.raises(RequestError, match=r"w8 head needs a quantised checkpoint.*--head f16"):
        replace(SETTINGS, bits=16).check(FLOATS)


@pytest.mark.parametrize(
    ("change", "name"), [({"intermediate_size": 200}, "mlp.gate_proj"), ({"vocabulary_size": 500}, "lm_head")]
)
def test_packed_layers_need_whole_groups_of_rows_and_columns(change: dict[str, int], name: str) -> None:
    config = replace(CONFIG, **change)  # pyright: ignore[reportArgumentType] - real fields
    with pytest.raises(RequestError, match=f"{name} has .* multiples of 64"):
        SETTINGS.check(config)
    replace(SETTINGS, bits=16, head="f16").check(config)


def test_alibi_needs_a_key_of_its_own_for_every_head() -> None:
    config = alibi_config(heads=6, kv_heads=2)
    with pytest.raises(RequestError, match="6 ALiBi heads over 2"):
        replace(SETTINGS, bits=16, head="f16", context=64, prefill=()).check(config)
