"""The reference of the check at the end of an installation depends on all that could go wrong."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.doctor.proofs import prove_toolchain
from baichuan2_tpu.errors import BackendError


@pytest.fixture
def layer(tmp_path: Path) -> tuple[prove_toolchain.Arrays, prove_toolchain.Arrays]:
    return prove_toolchain._write_weights(tmp_path), prove_toolchain._write_inputs(tmp_path)


@pytest.mark.parametrize(
    "change",
    ["positions", "history_k", "history_v", "states", "0.self_attn.q_proj.scales", "0.mlp.up_proj.qzeros"],
)
def test_any_wrong_input_is_far_above_the_allowed_error(
    layer: tuple[prove_toolchain.Arrays, prove_toolchain.Arrays], change: str
) -> None:
    weights, inputs = layer
    right = prove_toolchain.expected_outputs(weights, inputs)
    shifted = {change: np.roll({**weights, **inputs}[change], 1, axis=1)}
    wrong = prove_toolchain.expected_outputs({**weights, **shifted}, {**inputs, **shifted})
    error = prove_toolchain.largest_error(right, wrong)
    assert error > 4 * prove_toolchain._MOST_ERROR, f"{change}: {error}"


def test_simulation_takes_no_module_of_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python -c`` imported a numpy that lay in the current folder."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('a module of a stranger')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, filter(None, sys.path))))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match=r"the simulator ended with code 1, .*inputs\.npz") as caught:
        prove_toolchain._simulate_apart(tmp_path / "no.bmodel", tmp_path)
    assert "stranger" not in str(caught.value)
