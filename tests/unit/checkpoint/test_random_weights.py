"""Random weights have the form and the size of real ones."""

import numpy as np
import pytest

from baichuan2_tpu.checkpoint import random_weights
from baichuan2_tpu.checkpoint.layout import quantized_shapes
from baichuan2_tpu.checkpoint.packing import dequantize, unpack_linear
from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.shapes import SHAPES, shape_config

QUERIES = "model.layers.1.self_attn.q_proj"


@pytest.fixture(params=[4, 8])
def weights(request: pytest.FixtureRequest) -> RandomWeights:
    return RandomWeights(shape_config("tiny", request.param))


def test_every_tensor_has_the_shape_that_a_checkpoint_needs(weights: RandomWeights) -> None:
    for name, shape in quantized_shapes(weights.config).items():
        layer, _, part = name.rpartition(".")
        tensor = weights.array(layer) if part == "weight" else getattr(weights.linear(layer), part)
        assert tensor.shape == shape, name


@pytest.mark.parametrize("name", [QUERIES, "model.layers.0.mlp.down_proj", "lm_head"])
def test_weights_lie_around_zero_with_the_deviation_of_a_real_model(
    weights: RandomWeights, name: str
) -> None:
    values = dequantize(weights.linear(name))
    assert abs(values.mean()) < 0.001
    assert values.std() == pytest.approx(0.02, rel=0.05)


def test_integers_use_their_whole_range(weights: RandomWeights) -> None:
    integers, zeros = unpack_linear(weights.linear(QUERIES))
    middle = 1 << (weights.linear(QUERIES).bits - 1)
    assert (integers.min(), integers.max()) == (0, 2 * middle - 1)
    assert set(np.unique(zeros)) == {middle - 1, middle}


def test_the_head_keeps_its_own_bits() -> None:
    assert RandomWeights(shape_config("tiny", 4)).linear("lm_head").bits == 8


def test_a_seed_gives_the_same_tensors_in_any_order() -> None:
    first, second = (RandomWeights(shape_config("tiny", 4), seed=7) for _ in range(2))
    head = first.linear("lm_head").qweight
    second.linear(QUERIES)
    np.testing.assert_array_equal(second.linear("lm_head").qweight, head)
    np.testing.assert_array_equal(second.array("model.embed_tokens"), first.array("model.embed_tokens"))


def test_layers_and_seeds_differ() -> None:
    weights = RandomWeights(shape_config("tiny", 4))
    other = RandomWeights(shape_config("tiny", 4), seed=1)
    queries = weights.linear(QUERIES).qweight
    assert (queries != weights.linear("model.layers.0.self_attn.q_proj").qweight).any()
    assert (queries != other.linear(QUERIES).qweight).any()


def test_a_released_embedding_can_be_read_again(weights: RandomWeights) -> None:
    before = weights.array("model.embed_tokens")
    weights.release("model.embed_tokens")
    np.testing.assert_array_equal(weights.array("model.embed_tokens"), before)


def test_a_tensor_larger_than_the_pool_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "_MOST_POOL_WORDS", 1000)
    words = RandomWeights(shape_config("tiny", 4)).linear("lm_head").qweight.ravel()
    np.testing.assert_array_equal(words[1000:2000], words[:1000])


def test_named_shapes_have_the_official_parameter_counts() -> None:
    def parameters(name: str) -> int:
        config = SHAPES[name]
        block = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
        return config.layers * block + 2 * config.vocabulary_size * config.hidden_size

    assert round(parameters("baichuan2-7b") / 1e9, 3) == 7.506
    assert round(parameters("baichuan2-13b") / 1e9, 1) == 13.9


def test_an_unknown_shape_names_the_known_ones() -> None:
    with pytest.raises(
        RequestError, match=r"no shape 'gpt'; choose one of baichuan2-7b, baichuan2-13b, tiny"
    ):
        shape_config("gpt", 4)


def test_an_unquantised_shape_is_refused() -> None:
    with pytest.raises(RequestError, match="need a quantisation"):
        RandomWeights(SHAPES["tiny"])


def test_a_layer_that_the_shape_has_not_is_a_key_error(weights: RandomWeights) -> None:
    with pytest.raises(KeyError, match=r"layers\.2"):
        weights.linear("model.layers.2.mlp.up_proj")
