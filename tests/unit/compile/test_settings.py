"""What can be compiled is said before anything is."""

from dataclasses import replace

import pytest

from baichuan2_tpu.compile.settings import (
    CompileSettings,
    compiled_group_size,
    default_bits,
    default_head,
    default_stages,
)
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.shapes import shape_config
from models.tiny_checkpoint import alibi_config

CONFIG = shape_config("tiny", 4)
STAGES = (Stage(1, 512), Stage(16, 512), Stage(64, 512))
SETTINGS = CompileSettings(bits=4, head="w8", context=512, rows=512, stages=STAGES, layers_per_net=1)
FLOATS = replace(CONFIG, quantization=None)


def test_defaults_are_those_of_the_checkpoint() -> None:
    assert (default_bits(CONFIG), default_head(CONFIG)) == (4, "w8")
    assert default_head(replace(CONFIG, quantization=QuantizationConfig(4, head_bits=4))) == "w4"
    assert (default_bits(FLOATS), default_head(FLOATS)) == (16, "f16")


@pytest.mark.parametrize(
    ("context", "rows"), [(1, 1), (8, 8), (100, 100), (512, 512), (512, 3000), (4096, 8192)]
)
def test_default_stages_can_be_compiled_and_reach_all_rows(context: int, rows: int) -> None:
    stages = default_stages(context, rows)
    config = replace(CONFIG, max_context=4096)
    replace(SETTINGS, context=context, rows=rows, stages=stages).check(config)
    assert max(stage.tokens for stage in stages) <= max(1, min(context, rows // 2))


def test_default_stages_leave_out_what_saves_little() -> None:
    stages = default_stages(4096, 4096)
    by_history = {history: [s.tokens for s in stages if s.history == history] for _, history in stages}
    usual = [1, 16, 32, 64, 128, 256]
    assert by_history == {
        128: [1, 16],
        512: usual,
        1024: usual,
        2048: usual,
        4096: [1, 32, 64, 128, 256],
    }
    assert default_stages(8, 8) == ((1, 8),)


@pytest.mark.parametrize(
    ("group_size", "inner", "compiled"),
    [(64, 256, 64), (128, 384, 128), (256, 512, 256), (256, 320, 64), (192, 384, 64)],
)
def test_groups_are_as_large_as_the_compiler_and_all_columns_allow(
    group_size: int, inner: int, compiled: int
) -> None:
    quantization = QuantizationConfig(4, group_size=group_size)
    shape = {"hidden_size": 512, "heads": 16, "kv_heads": 16, "intermediate_size": inner}
    config = replace(CONFIG, quantization=quantization, **shape)
    assert compiled_group_size(config) == compiled
    assert compiled_group_size(FLOATS) == 64


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({}, CONFIG),
        ({"bits": 16}, CONFIG),
        ({"bits": 16, "head": "f16"}, FLOATS),
        ({"context": 1, "rows": 1, "stages": (Stage(1, 1),)}, CONFIG),
        ({"rows": 8192, "stages": (Stage(2, 10), Stage(1, 8192), Stage(2, 8192))}, CONFIG),
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
        ({"rows": 511}, "511 rows cannot be compiled: choose the context, 512, to 8192"),
        ({"rows": 8193}, "8193 rows cannot be compiled"),
        (
            {"stages": (Stage(0, 512), *STAGES)},
            "stage of 0 tokens after 512 rows .* choose 1 to 512 tokens",
        ),
        ({"stages": (*STAGES, Stage(513, 512))}, "a stage of 513 tokens after 512 rows"),
        ({"stages": (*STAGES, Stage(1, 513))}, "a stage of 1 tokens after 513 rows .* 1 to 512 rows"),
        ({"stages": STAGES[::-1]}, "stages must rise by rows, then by tokens"),
        ({"stages": (STAGES[0], *STAGES)}, "stages must rise by rows, then by tokens"),
        ({"stages": STAGES[1:]}, "a stage of 1 tokens after 512 rows is missing"),
        ({"stages": (Stage(64, 128), *STAGES[:2])}, "a stage of 64 tokens after 512 rows is missing"),
        ({"stages": ()}, "a stage of 1 tokens after 512 rows is missing"),
        ({"layers_per_net": 0}, "0 layers per net cannot be compiled: choose 1 or more"),
        ({"head_rows": (16, 32)}, "rows of the head 16, 32 must rise from 1"),
        ({"head_rows": (1, 16, 16)}, "rows of the head 1, 16, 16 must rise from 1"),
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
        replace(SETTINGS, bits=16, head="f16", context=64, rows=64, stages=(Stage(1, 64),)).check(config)
