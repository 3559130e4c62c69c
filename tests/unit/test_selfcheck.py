"""The reference of the check at the end of an installation depends on all that could go wrong."""

from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu import selfcheck


@pytest.fixture
def layer(tmp_path: Path) -> tuple[selfcheck.Arrays, selfcheck.Arrays]:
    return selfcheck._write_weights(tmp_path), selfcheck._write_inputs(tmp_path)


@pytest.mark.parametrize(
    "change",
    ["positions", "history_k", "history_v", "states", "self_attn.q_proj.scales", "mlp.up_proj.qzeros"],
)
def test_any_wrong_input_is_far_above_the_allowed_error(
    layer: tuple[selfcheck.Arrays, selfcheck.Arrays], change: str
) -> None:
    weights, inputs = layer
    right = selfcheck.expected_outputs(weights, inputs)
    shifted = {change: np.roll({**weights, **inputs}[change], 1, axis=1)}
    wrong = selfcheck.expected_outputs({**weights, **shifted}, {**inputs, **shifted})
    error = selfcheck.relative_error(right, wrong)
    assert error > 4 * selfcheck._MOST_ERROR, f"{change}: {error}"
