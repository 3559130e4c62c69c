"""What a diagnosis must know of this machine and stands in no file: Python, kernels, disk, what is installed.

Not here: everything that is read from files (``machine`` and its readers).
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from baichuan2_tpu import __version__
from baichuan2_tpu.engine.cpu import available_kernels
from baichuan2_tpu.engine.device.sail_library import installed_version
from baichuan2_tpu.errors import BackendUnavailable, CompileError
from baichuan2_tpu.fetch import cache_folder
from baichuan2_tpu.toolchain import find_simulator, find_toolchain

__all__ = ["Host"]


@dataclass(frozen=True, slots=True)
class Host:
    """Units: ``cache_free_bytes`` of the file system that the cache is on, or will be."""

    version: str
    """Of this package."""
    python: str
    architecture: str
    kernels: tuple[str, ...]
    """The fastest first; the engine takes that one."""
    cache: Path
    cache_free_bytes: int
    sail: str
    """Version of SOPHON-SAIL, or nothing where it is not installed."""
    toolchain: str
    """Version of TPU-MLIR, or nothing where there is none to be used."""
    simulator: bool

    @classmethod
    def here(cls) -> Self:
        """Describe the machine this runs on."""
        cache = cache_folder()
        return cls(
            version=__version__,
            python=platform.python_version(),
            architecture=platform.machine(),
            kernels=available_kernels(),
            cache=cache,
            cache_free_bytes=shutil.disk_usage(_existing(cache)).free,
            sail=installed_version() if importlib.util.find_spec("sophon") else "",
            toolchain=_toolchain_version(),
            simulator=_has_simulator(),
        )


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())


def _toolchain_version() -> str:
    try:
        return find_toolchain().version
    except CompileError:
        return ""


def _has_simulator() -> bool:
    try:
        find_simulator()
    except BackendUnavailable:
        return False
    return True
