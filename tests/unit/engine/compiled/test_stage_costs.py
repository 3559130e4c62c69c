"""New tokens are cut into the cheapest stages: all are taken, only the end is padded."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan2_tpu.engine.compiled.net_plan import plan_nets
from baichuan2_tpu.engine.compiled.stage_costs import StageCosts, cut_tokens
from doubles.numpy_device import NumpyDevice
from models.random_model import float_weights, random_weights

LAYER_MS = {1: 2.28, 2: 3.40, 4: 2.78, 8: 2.52, 16: 2.45, 32: 2.60, 64: 2.93, 128: 4.96}
"""The cycle model's figures of a layer of the 7B behind 512 rows."""


@pytest.mark.parametrize(
    ("tokens", "pieces"),
    [
        (1, (1,)),
        (2, (16,)),
        (8, (16,)),
        (16, (16,)),
        (17, (32,)),
        (33, (64,)),
        (65, (128,)),
        (128, (128,)),
        (129, (128, 1)),
        (192, (128, 64)),
        (64 * 20, (128,) * 10),
    ],
)
def test_pieces_of_the_7b(tokens: int, pieces: tuple[int, ...]) -> None:
    assert cut_tokens(tokens, LAYER_MS) == pieces


def test_nothing_is_launched_for_no_tokens() -> None:
    assert cut_tokens(0, LAYER_MS) == ()


@given(
    st.integers(1, 60),
    st.dictionaries(st.integers(1, 20), st.integers(1, 50).map(float), min_size=1, max_size=4),
)
def test_no_other_cut_costs_less_and_only_the_last_piece_is_padded(
    tokens: int, costs: dict[int, float]
) -> None:
    pieces = cut_tokens(tokens, costs)
    assert sum(pieces[:-1]) < tokens <= sum(pieces)
    assert list(pieces) == sorted(pieces, reverse=True)
    if tokens > 4 * max(costs):
        return  # the rest is exact, the beginning is the stage that takes most tokens in a time
    spent = sum(costs[size] for size in pieces)
    # Every multiset of at most as many pieces as there are tokens, by the number of each but the last size.
    *sizes, last = costs
    for counts in itertools.product(*(range(-(-tokens // size) + 1) for size in sizes)):
        rest = max(0, tokens - sum(size * count for size, count in zip(sizes, counts, strict=True)))
        other = sum(costs[size] * count for size, count in zip(sizes, counts, strict=True))
        assert spent <= other + costs[last] * -(-rest // last) + 1e-6


def plan_of(**options: object) -> StageCosts:
    model = random_weights("grouped", 4)
    device = NumpyDevice(model.config, float_weights(model), **options)  # pyright: ignore[reportArgumentType]
    return StageCosts(plan_nets(device.nets))


def test_without_figures_of_a_manifest_two_to_eight_tokens_cost_more_than_sixteen() -> None:
    costs = plan_of(stages=(1, 2, 4, 8, 16, 32), context=4096)
    by_tokens = {size: costs.of(stage) for size, stage in costs.stages(2000).items()}
    assert min(by_tokens[size] for size in (2, 4, 8)) > by_tokens[16] > by_tokens[1]
    # The cycle model has 3.367, 3.650 and 3.702 ms.
    assert [by_tokens[size] for size in (1, 16, 32)] == pytest.approx([3.367, 3.650, 3.702], rel=0.08)


def test_the_shortest_history_that_covers_the_rows_is_read() -> None:
    costs = plan_of(stages=(1, 16), context=256, histories=(32, 64))
    assert [costs.stages(rows)[16].history for rows in (0, 32, 33, 64, 65, 256)] == [32, 32, 64, 64, 256, 256]


def test_the_head_takes_no_more_rows_than_a_launch_has() -> None:
    costs = plan_of(stages=(1, 16), context=64, head_rows=(1, 4, 16, 32))
    assert costs.head_sizes(3, 16) == (4,)
    assert costs.head_sizes(16, 16) == (16,)
    assert costs.head_sizes(1, 1) == (1,)
    assert costs.head_sizes(0, 16) == ()
