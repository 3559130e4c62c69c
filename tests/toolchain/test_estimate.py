"""A bundle that was really compiled can be estimated: its manifest has the cost of every launch."""

import pytest

from baichuan2_tpu.estimate import Estimate, estimate
from baichuan2_tpu.manifest import Manifest
from models.tiny_bundle import TinyBundles


@pytest.fixture(scope="module")
def found(tiny_bundle: TinyBundles) -> Estimate:
    return estimate(Manifest.read(tiny_bundle(4).folder))


def test_every_launch_has_a_cost(found: Estimate) -> None:
    nets = len(found.manifest.block_nets)
    assert found.decode.total.launches == nets + 1
    for step in (*found.answers.values(), *found.loaded.values(), *found.first_tokens.values()):
        assert step.layers.launches == nets * len(step.stages)
        assert step.total.time_ms > step.total.roofline_ms > 0


def test_a_full_context_takes_longer_than_a_token(found: Estimate) -> None:
    # Between them times need not rise: in a model this small 16 tokens can take longer than 64.
    first_tokens = found.first_tokens
    assert first_tokens[found.manifest.context].total.time_ms > 2 * first_tokens[1].total.time_ms
    assert len(first_tokens) > 3
