"""Settings for every test of this project, and what tests need that no plain machine has."""

import os
import signal

import hypothesis
import pytest

from baichuan2_tpu.errors import CompileError
from baichuan2_tpu.toolchain import Toolchain, find_toolchain, install_toolchain
from models.tiny_bundle import TinyBundles

# No test may depend on the clock: machines differ, and a shared one stalls for half a second now and then.
hypothesis.settings.register_profile(
    "project", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("project")

# A shell that runs the tests in its background ignores Ctrl-C, and so would every process they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    """The TPU-MLIR in the user's cache, with its simulator; skips where there is none."""
    if os.environ.get("BAICHUAN2_TEST_TOOLCHAIN") == "1":
        return install_toolchain()
    try:
        return find_toolchain()
    except CompileError:
        pytest.skip("run: baichuan2 toolchain install")


@pytest.fixture(scope="session")
def tiny_bundle(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> TinyBundles:
    """Bundles of a tiny random model by their bits, each compiled when it is first asked for."""
    return TinyBundles(tmp_path_factory.mktemp("bundles"), toolchain)
