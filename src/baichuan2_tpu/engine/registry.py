"""Open the engine for a model, by the name that is asked for or by what kind of model it is.

A quantised checkpoint runs on the cpu, a compiled bundle on a device. The simulator is never chosen by
itself: it takes minutes for what a TPU does in a second. An engine's libraries are loaded only when it is
opened. Not here: making a checkpoint out of something else (``resolve``), the check of this machine's
memory (``memory``, which ``model`` asks first).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from baichuan2_tpu.checkpoint.identify import Located
from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from baichuan2_tpu.engine.compiled.open_bundle import OpenDevice
    from baichuan2_tpu.engine.packed_file import ByteProgress

__all__ = ["ENGINES", "device_opener", "open_engine"]

_log = logging.getLogger(__name__)

ENGINES = ("auto", "cpu", "bmrt", "sail", "simulator")
"""What ``engine`` may be; "auto" runs a quantised checkpoint on the cpu, and a bundle on a TPU by bmrt."""


def open_engine(  # noqa: PLR0913 - all but the first are optional and go by name
    located: Located,
    *,
    engine: str = "auto",
    device: int = 0,
    context: int | None = None,
    threads: int | None = None,
    is_exact: bool = False,
    keep_packed: bool = False,
    progress: ByteProgress | None = None,
    notice: Callable[[str], None] = _log.info,
) -> Engine:
    """Open the model that was located.

    ``device`` is the number of a TPU; ``threads``, ``is_exact`` and ``keep_packed`` (in the user's cache, for
    a quick next start) are for the cpu alone. ``context`` None is the model's own, or the compiled one.
    ``progress`` is told the bytes of weights that are read.
    Raises: CheckpointError or ArtifactError for what cannot be read; RequestError for an engine that cannot
    run it, or a setting that this engine does not have; ContextLengthError; BackendError where it cannot run.
    """
    if engine not in ENGINES:
        raise RequestError(f"there is no engine {engine!r}; choose one of {', '.join(ENGINES)}")
    if located.is_compiled:
        if threads is not None or is_exact:
            raise RequestError("threads and the exact mode are only for the cpu engine; leave them out")
        if located.bmodel is not None:
            return _open_vendor(located.bmodel, engine, device=device, context=context)
        return _open_bundle(located.path, engine, device=device, context=context)
    if engine not in ("auto", "cpu"):
        raise RequestError(
            f"{located.path} is not a compiled bundle, and engine {engine} runs nothing else; "
            f"run baichuan2 compile {located.path} BUNDLE first, or use --engine cpu"
        )
    if device != 0:
        raise RequestError(f"the cpu engine has no device {device}; leave --device out")
    from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint  # noqa: PLC0415
    from baichuan2_tpu.engine.cpu import CpuEngine  # noqa: PLC0415
    from baichuan2_tpu.engine.packed_file import PackedFile  # noqa: PLC0415

    weights = QuantizedCheckpoint(located.path)
    return CpuEngine(
        weights,
        context=context,
        threads=threads,
        is_exact=is_exact,
        packed=PackedFile(located.path, weights.files) if keep_packed else None,
        progress=progress,
        notice=notice,
    )


def _open_bundle(path: Path, engine: str, *, device: int, context: int | None) -> Engine:
    from baichuan2_tpu.engine.compiled.open_bundle import open_bundle  # noqa: PLC0415

    if engine == "cpu":
        raise RequestError(
            f"{path} is a compiled bundle, which the cpu engine cannot run; name the checkpoint it was "
            f"compiled from ({Manifest.read(path).source}), or use --engine bmrt, sail or simulator"
        )
    return open_bundle(path, device_opener(engine, device), context=context)


def _open_vendor(bmodel: Path, engine: str, *, device: int, context: int | None) -> Engine:
    from baichuan2_tpu.engine.compiled.open_vendor_bmodel import open_vendor_bmodel  # noqa: PLC0415

    if engine == "cpu":
        raise RequestError(
            f"{bmodel} is compiled, which the cpu engine cannot run; use --engine bmrt, sail or simulator"
        )
    return open_vendor_bmodel(bmodel, device_opener(engine, device), context=context)


def device_opener(engine: str, device: int) -> OpenDevice:
    """Return what opens a bmodel where the user wants it; auto means a TPU through libbmrt, and nothing else.

    Raises: BackendUnavailable where the simulator is asked for and not installed.
    """
    if engine == "sail":
        from baichuan2_tpu.engine.device.sail import SailDevice  # noqa: PLC0415

        return lambda bmodel, reserve_bytes: SailDevice(bmodel, device=device, reserve_bytes=reserve_bytes)
    from baichuan2_tpu.engine.device.bmrt import BmrtDevice  # noqa: PLC0415
    from baichuan2_tpu.toolchain import find_simulator  # noqa: PLC0415

    folder = find_simulator() if engine == "simulator" else None
    return lambda bmodel, reserve_bytes: BmrtDevice(
        bmodel, device=device, simulator=folder, reserve_bytes=reserve_bytes
    )
