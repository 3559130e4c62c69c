"""Versions of the vendor's software: the driver in the kernel, libsophon, and the SDK they came with.

Not here: SAIL, which is a Python package (``host``).
Source: bm_debug.c (driver_version) and MODULE_VERSION of libsophon's driver; the link that its packages set;
the version table of sophgo/sophon-tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from baichuan2_tpu.doctor.system_files import Machine, Seen
from baichuan2_tpu.doctor.tpu import DeviceKind
from baichuan2_tpu.engine.device.bmrt_library import OLDEST_LIBSOPHON

__all__ = [
    "LEAST_LIBSOPHON",
    "Version",
    "parse_version",
    "read_driver_version",
    "read_libsophon_version",
    "sdk_name",
    "written",
]

Version = tuple[int, ...]

_SDKS: Mapping[Version, str] = {
    (0, 4, 8): "V23.05.01",
    (0, 4, 9): "V23.07.01",
    (0, 5, 0): "V23.10.01",
    (0, 5, 1): "V24.04.01",
    (0, 5, 2): "V25.03.01",
}
_VERSION = re.compile(r"(?<![\d.])(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?!\.?\d)")
_LIBSOPHON_LINK = "/opt/sophon/libsophon-current"
_DRIVER_FILES = {"pcie": "/proc/bmsophon/driver_version", "soc": "/sys/module/bmtpu/version"}


def read_driver_version(machine: Machine, kind: DeviceKind) -> Seen[Version]:
    """Read what the loaded driver says of itself; of a machine without a TPU the card's is looked for."""
    return machine.parsed(_DRIVER_FILES.get(kind, _DRIVER_FILES["pcie"]), parse_version)


def read_libsophon_version(machine: Machine) -> Seen[Version]:
    """Read the version off the link that libsophon's packages set to the folder they install."""
    link = machine.link(_LIBSOPHON_LINK)
    if link.value is None:
        return Seen(link.path, problem=link.problem)
    version = parse_version(link.value)
    return Seen(link.path, version) if version else Seen(link.path, problem=f"leads to {link.value[:60]!r}")


def parse_version(text: str) -> Version | None:
    """Return the first version of three numbers in a text."""
    found = _VERSION.search(text)
    return tuple(int(one) for one in found.groups()) if found else None


def written(version: Version) -> str:
    """Write a version with points."""
    return ".".join(str(one) for one in version)


def sdk_name(version: Version) -> str:
    """Return the SDK that a libsophon came with, or nothing where it is not known."""
    return _SDKS.get(version, "")


LEAST_LIBSOPHON = parse_version(OLDEST_LIBSOPHON) or ()
"""Of the driver and of the libraries: older ones have other structs."""
