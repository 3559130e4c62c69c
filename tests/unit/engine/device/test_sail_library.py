"""Which SAIL is taken, and that nothing it raises gets past as what it is."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from types import ModuleType

import pytest

from baichuan2_tpu.engine.device.sail_library import (
    VENDOR_ERRORS,
    check_version,
    import_errors,
    vendor_errors,
)
from baichuan2_tpu.errors import BackendUnavailable, DeviceError
from doubles.sail_double_tensor import EXCEPTIONS


def module_with(**attributes: object) -> ModuleType:
    module = ModuleType("sophon.sail")
    vars(module).update(attributes)
    return module


DOUBLE = module_with(**{kind.__name__: kind for kind in EXCEPTIONS})


def sails() -> list[ModuleType]:
    """Return what stands for SAIL, and SAIL itself where it is installed."""
    is_installed = importlib.util.find_spec("sophon") is not None
    return [DOUBLE, *([importlib.import_module("sophon.sail")] if is_installed else [])]


class NewTensor:
    def nbytes(self) -> int:
        return 0


class OldTensor: ...


OLD = {
    "3.7": module_with(Tensor=OldTensor),
    "3.9.0": module_with(Tensor=OldTensor, EngineLLM=object),
    "something else": module_with(),
}


def test_a_version_with_views_is_taken() -> None:
    newest = module_with(Tensor=NewTensor, EngineLLM=object)
    check_version(newest)
    vars(newest).pop("EngineLLM")
    with pytest.raises(BackendUnavailable, match="too old"):
        check_version(newest)


@pytest.mark.parametrize("version", OLD)
def test_an_older_version_is_refused_with_the_next_step(version: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"too old; build 3\.9\.1 or newer from https://github"):
        check_version(OLD[version])


def test_the_installed_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # sail.__version__ is no version, it says when the library was built.
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"sophon": ["sophon_arm", "other"]})
    monkeypatch.setattr(metadata, "version", {"sophon_arm": "3.8.0"}.__getitem__)
    with pytest.raises(BackendUnavailable, match=r"^SOPHON-SAIL 3\.8\.0 is too old"):
        check_version(OLD["3.9.0"])


def test_a_missing_sail_is_told_with_the_next_step() -> None:
    with (
        pytest.raises(
            BackendUnavailable, match=r"not installed for this Python; build .* or use --engine bmrt"
        ),
        import_errors(),
    ):
        importlib.import_module("sophon_that_nobody_has")


def test_a_sail_without_its_libraries_is_told_from_a_missing_one() -> None:
    with (
        pytest.raises(BackendUnavailable, match=r"cannot be loaded \(libbmrt\.so\.1\.0.*LD_LIBRARY_PATH"),
        import_errors(),
    ):
        raise ImportError("libbmrt.so.1.0: cannot open shared object file")


@pytest.mark.parametrize("sail", sails())
def test_every_exception_of_the_vendor_is_mapped(sail: ModuleType) -> None:
    members = vars(sail).items()
    classes = {name for name, one in members if isinstance(one, type) and issubclass(one, Exception)}
    assert classes == set(VENDOR_ERRORS)
    for name in VENDOR_ERRORS:
        kind = getattr(sail, name)
        with pytest.raises(DeviceError, match=f"SAIL could not run a net: {name}: broken") as caught:
            raise_in_vendor_errors(sail, kind("broken"))
        assert type(caught.value.__cause__) is kind


@pytest.mark.parametrize("kind", [RuntimeError, IndexError, TypeError, ValueError, MemoryError])
def test_exceptions_that_the_binding_makes_of_others_are_mapped(kind: type[Exception]) -> None:
    with pytest.raises(DeviceError, match=kind.__name__) as caught:
        raise_in_vendor_errors(DOUBLE, kind("no enough device memory"))
    assert type(caught.value.__cause__) is kind


def test_what_is_not_the_vendors_passes_through() -> None:
    with pytest.raises(KeyError):
        raise_in_vendor_errors(DOUBLE, KeyError("ours"))


def raise_in_vendor_errors(sail: ModuleType, error: Exception) -> None:
    with vendor_errors(sail, "run a net"):
        raise error
