"""The check at the end of an installation is a real computation, and it notices a wrong one."""

from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.doctor.proofs import prove_toolchain
from baichuan2_tpu.errors import BackendError
from baichuan2_tpu.toolchain import Toolchain


def test_installed_toolchain_passes(toolchain: Toolchain) -> None:
    check = prove_toolchain.check_toolchain(toolchain)
    assert 0 < check.error < prove_toolchain._MOST_ERROR
    assert check.compile_s > 0
    assert check.simulate_s > 0


def test_wrong_result_is_reported(toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    right = prove_toolchain.expected_outputs
    monkeypatch.setattr(
        prove_toolchain, "expected_outputs", lambda *inputs: [values * 1.02 for values in right(*inputs)]
    )
    with pytest.raises(BackendError, match=r"differs from numpy by 0\.02, at most 0\.01 is allowed"):
        prove_toolchain.check_toolchain(toolchain)


def test_simulation_that_dies_is_reported_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"the simulator ended with code 1, its last line: .*inputs\.npz"):
        prove_toolchain._simulate_apart(tmp_path / "none.bmodel", tmp_path)


def test_simulation_writes_the_outputs_beside_the_bmodel(toolchain: Toolchain, tmp_path: Path) -> None:
    weights = prove_toolchain._write_weights(tmp_path)
    inputs = prove_toolchain._write_inputs(tmp_path)
    bmodel = prove_toolchain._compile(toolchain, tmp_path)
    prove_toolchain.simulate(str(bmodel), str(prove_toolchain.find_simulator(toolchain.root)))
    with np.load(tmp_path / "outputs.npz") as outputs:
        error = prove_toolchain.largest_error(
            prove_toolchain.expected_outputs(weights, inputs), list(outputs.values())
        )
    assert error < prove_toolchain._MOST_ERROR
