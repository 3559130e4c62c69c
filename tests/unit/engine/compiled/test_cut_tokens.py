"""New tokens are cut into compiled stages: all are taken, only the end is padded, and time is not wasted."""

import pytest

from baichuan2_tpu.engine.compiled.net_plan import cut_tokens

STAGES = (1, 16, 64, 256)


@pytest.mark.parametrize(
    ("tokens", "pieces"),
    [
        (1, (1,)),
        (2, (16,)),
        (16, (16,)),
        (17, (64,)),
        (65, (64, 1)),
        (80, (64, 16)),
        (128, (64, 64)),
        (129, (256,)),
        (300, (256, 64)),
        (512, (256, 256)),
        (600, (256, 256, 64, 64)),
    ],
)
def test_pieces_of_the_usual_stages(tokens: int, pieces: tuple[int, ...]) -> None:
    assert cut_tokens(tokens, STAGES) == pieces


@pytest.mark.parametrize("stages", [STAGES, (1,), (1, 512), (1, 3, 7)])
def test_every_token_is_taken_and_only_the_last_piece_is_padded(stages: tuple[int, ...]) -> None:
    for tokens in range(1, 600):
        *full, last = cut_tokens(tokens, stages)
        assert sum(full) < tokens <= sum(full) + last


def test_a_single_stage_takes_any_prompt_that_fits() -> None:
    assert cut_tokens(14, (512,)) == cut_tokens(512, (512,)) == (512,)
