"""What is around calls of SOPHON-SAIL: which versions are taken, and what its exceptions mean.

Not here: the import itself and everything that runs (``sail``).
Source: src/bind.cpp, src/tensor.cpp and python/setup.py of SOPHON-SAIL 3.9.0, 3.9.1 and 3.10.7.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType

from baichuan2_tpu.errors import BackendUnavailable, DeviceError

__all__ = [
    "OLDEST_SAIL",
    "VENDOR_ERRORS",
    "check_apart",
    "check_version",
    "import_errors",
    "installed_version",
    "vendor_errors",
]

VENDOR_ERRORS = (
    "DataTypeError",
    "MemoryError",
    "NotSupport",
    "SailBMImageError",
    "SailDecoderError",
    "SailDeviceError",
    "SailEncoderError",
    "SailEngineError",
    "SailTensorError",
    "SailUnknownError",
)
"""Every exception of SAIL by its name: each is straight below Exception, there is no common base."""

# What the binding makes of C++ exceptions without a class of their own: failed allocation on the device is a
# RuntimeError, a bad net, index or stage an IndexError, a form of call that it does not know a TypeError.
_PYTHON_ERRORS = (RuntimeError, IndexError, TypeError, ValueError, MemoryError)

OLDEST_SAIL = "3.9.1"
"""Older ones have other forms of the calls, and neither views nor ``nbytes``."""

_INSTALL = (
    f"build {OLDEST_SAIL} or newer from https://github.com/sophgo/sophon-sail and install its wheel with "
    "pip, or use --engine bmrt, which needs libsophon alone"
)
# One distribution for each platform. ``sail.__version__`` says when it was built, and nothing else.
_DISTRIBUTIONS = frozenset(
    {"sophon", "sophon-arm", "sophon-arm-pcie", "sophon-loongarch64", "sophon-riscv64", "sophon-sw64"}
)


def check_apart() -> None:
    """Check that SAIL, once imported, will not be linked to the simulator's libraries.

    They have the names of those that drive hardware: SAIL would run on the simulator, and nobody would know.
    Raises: BackendUnavailable where the simulator is in use in this process.
    """
    if "sophon.sail" in sys.modules or importlib.util.find_spec("sophon") is None:
        return
    maps = Path("/proc/self/maps")
    if maps.exists() and "libcmodel_" in maps.read_text("utf-8"):
        raise BackendUnavailable(
            "the simulator is in use in this process, and SAIL would run on it; use each in its own process"
        )


@contextmanager
def import_errors() -> Generator[None, None, None]:
    """Say the next step where ``sophon.sail`` cannot be imported.

    Raises: BackendUnavailable.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"SOPHON-SAIL is not installed for this Python; {_INSTALL}") from error
    except ImportError as error:
        raise BackendUnavailable(
            f"SOPHON-SAIL is installed but cannot be loaded ({error}); install libsophon 0.5.1 or newer "
            "and add /opt/sophon/libsophon-current/lib to LD_LIBRARY_PATH"
        ) from error


def check_version(sail: ModuleType) -> None:
    """Check by what it can do that ``sail`` is 3.9.1 or newer.

    3.7 has no ``EngineLLM``; 3.8 and 3.9.0 have other forms of its calls, and neither views nor ``nbytes``.
    Raises: BackendUnavailable.
    """
    if hasattr(sail, "EngineLLM") and hasattr(sail.Tensor, "nbytes"):
        return
    raise BackendUnavailable(f"SOPHON-SAIL {installed_version()} is too old; {_INSTALL}")


def installed_version() -> str:
    """Return the version of the distribution that brought SAIL, or the words "of an unknown version"."""
    names = metadata.packages_distributions().get("sophon", [])
    versions = [metadata.version(name) for name in names if name.lower().replace("_", "-") in _DISTRIBUTIONS]
    return versions[0] if versions else "of an unknown version"


@contextmanager
def vendor_errors(sail: ModuleType, action: str) -> Generator[None, None, None]:
    """Raise whatever SAIL raises as DeviceError that says what it could not do."""
    kinds = tuple(getattr(sail, name) for name in VENDOR_ERRORS if hasattr(sail, name))
    try:
        yield
    except (*kinds, *_PYTHON_ERRORS) as error:
        raise DeviceError(
            f"SAIL could not {action}: {type(error).__name__}: {error}; "
            "its log on standard error says more, bm-smi shows the state of the device"
        ) from error
