"""The engine that was asked for is opened, or refused with the next step; never another one in its place."""

from pathlib import Path

import pytest

from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.engine.registry import CpuSettings, open_engine
from baichuan2_tpu.errors import ArtifactError, BackendUnavailable, ContextLengthError, RequestError
from baichuan2_tpu.quantize import quantize
from models.fake_bundle import write_fake_bundle
from models.tiny_checkpoint import rope_config, write_official


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    quantize(write_official(folder / "float", rope_config()), folder / "quantised", bits=4, method="search")
    return folder / "quantised"


@pytest.fixture
def bundle(checkpoint: Path, tmp_path: Path) -> Path:
    write_fake_bundle(tmp_path / "bundle", checkpoint)
    return tmp_path / "bundle"


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_checkpoint_runs_on_the_cpu(checkpoint: Path, name: str) -> None:
    with open_engine(identify(checkpoint), engine=name, context=32, cpu=CpuSettings(1)) as engine:
        assert (engine.name, engine.max_context, engine.is_simulated) == ("cpu", 32, False)


@pytest.mark.parametrize("name", ["bmrt", "sail", "simulator"])
def test_a_device_refuses_a_checkpoint_and_says_how_to_compile_it(checkpoint: Path, name: str) -> None:
    with pytest.raises(RequestError) as caught:
        open_engine(identify(checkpoint), engine=name)
    assert str(caught.value) == (
        f"{checkpoint} is not a compiled bundle, and engine {name} runs nothing else; "
        f"run baichuan2 compile {checkpoint} BUNDLE first, or use --engine cpu"
    )


def test_the_cpu_has_no_second_device(checkpoint: Path) -> None:
    with pytest.raises(RequestError, match="cpu engine has no device 1; leave --device out"):
        open_engine(identify(checkpoint), device=1)


def test_the_cpu_refuses_a_bundle_and_names_its_checkpoint(bundle: Path) -> None:
    with pytest.raises(
        RequestError, match=r"name the checkpoint it was compiled from \(Tiny-Chat sha256:0\)"
    ):
        open_engine(identify(bundle), engine="cpu")


@pytest.mark.parametrize(
    "settings", [CpuSettings(threads=2), CpuSettings(is_exact=True), CpuSettings(kv_bits=16)]
)
def test_settings_of_the_cpu_are_refused_for_a_bundle(bundle: Path, settings: CpuSettings) -> None:
    with pytest.raises(RequestError, match="threads, kv and the exact mode are only for the cpu engine"):
        open_engine(identify(bundle), cpu=settings)


def test_a_context_longer_than_compiled_is_refused(bundle: Path) -> None:
    with pytest.raises(ContextLengthError, match="128 tokens is asked for, the bundle was compiled for 64"):
        open_engine(identify(bundle), context=128)


def test_auto_never_means_the_simulator(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baichuan2_tpu.toolchain.find_simulator", lambda: pytest.fail("was looked for"))
    with pytest.raises((ArtifactError, BackendUnavailable)):
        open_engine(identify(bundle))


def test_a_simulator_that_is_not_installed_says_how_to_install_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(BackendUnavailable, match="run: baichuan2 toolchain install"):
        open_engine(identify(bundle), engine="simulator")


def test_an_unknown_engine_lists_the_known_ones(checkpoint: Path) -> None:
    with pytest.raises(RequestError, match="choose one of auto, cpu, bmrt, sail, simulator"):
        open_engine(identify(checkpoint), engine="gpu")
