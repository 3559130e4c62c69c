"""Memory is counted from the dimensions, and a context that cannot fit is refused with numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from baichuan2_tpu import memory
from baichuan2_tpu.checkpoint.layout import HEAD, layer_linears
from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.errors import ContextLengthError
from baichuan2_tpu.memory import check_context, machine_memory_bytes, memory_need
from baichuan2_tpu.shapes import SHAPES, shape_config


def test_kv_cache_of_the_7b_is_half_a_mebibyte_per_token_in_float16_and_52_percent_of_it_in_int8() -> None:
    config = shape_config("baichuan2-7b", 4)
    assert memory_need(config).kv_bytes_per_token == 512 * 1024
    assert memory_need(config, 8).kv_bytes_per_token == 2 * 32 * 32 * (128 + 4)


@pytest.mark.parametrize("bits", [4, 8])
def test_count_is_what_the_arrays_hold(bits: Literal[4, 8]) -> None:
    config = shape_config("tiny", bits)
    weights = RandomWeights(config)
    names = [HEAD, *(name for layer in range(config.layers) for name in layer_linears(config, layer))]
    linears = [weights.linear(name) for name in names]
    held = sum(one.qweight.nbytes + one.qzeros.nbytes + one.scales.nbytes for one in linears)
    need = memory_need(config)
    assert need.linear_bytes == held
    assert need.embedding_bytes == weights.array("model.embed_tokens").nbytes
    assert need.norm_bytes == 5 * weights.array("model.norm").nbytes


def test_float_model_counts_two_bytes_a_weight() -> None:
    config = SHAPES["baichuan2-7b"]
    assert memory_need(config).weight_bytes / 2 == pytest.approx(7.506e9, rel=1e-3)


def test_context_that_fits_to_the_byte_is_accepted() -> None:
    config = shape_config("tiny", 4)
    need = memory_need(config)
    check_context(config, 100, need.total_bytes(100), kv_bits=16)
    with pytest.raises(ContextLengthError, match="choose a context of 99 or less"):
        check_context(config, 100, need.total_bytes(100) - 1, kv_bits=16)


def test_context_that_does_not_fit_names_every_number() -> None:
    config = shape_config("baichuan2-7b", 4)
    with pytest.raises(ContextLengthError) as caught:
        check_context(config, 100_000, 24 * 10**9, kv_bits=16)
    assert str(caught.value) == (
        "a context of 100000 tokens needs 52.43 GB of KV cache beside 5.06 GB of weights, "
        "this machine has 24.00 GB; choose a context of 4096 or less"
    )


def test_longest_context_fits_to_the_token() -> None:
    config = replace(shape_config("baichuan2-7b", 4), max_context=10**6)
    with pytest.raises(ContextLengthError, match="choose a context of 36123 or less"):
        check_context(config, 36_124, 24 * 10**9, kv_bits=16)
    check_context(config, 36_123, 24 * 10**9, kv_bits=16)


def test_weights_that_do_not_fit_ask_for_another_machine() -> None:
    config = shape_config("baichuan2-7b", 4)
    with pytest.raises(ContextLengthError, match="use fewer bits or a larger machine"):
        check_context(config, 1, 10**9, kv_bits=16)


def test_container_limit_counts_when_it_is_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (limit, tmp_path / "absent"))
    whole = machine_memory_bytes()
    limit.write_text("max\n")
    assert machine_memory_bytes() == whole
    limit.write_text("1000\n")
    assert machine_memory_bytes() == 1000
