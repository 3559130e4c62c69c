"""Open the engine for a model directory, by name or by what the directory holds.

Not here: making a checkpoint out of something else (``resolve``).
"""

from __future__ import annotations

from pathlib import Path

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.errors import RequestError

__all__ = ["ENGINES", "open_engine"]

ENGINES = ("auto", "cpu")
"""What ``engine`` may be; "auto" runs a quantised checkpoint on the cpu."""


def open_engine(
    path: Path,
    *,
    engine: str = "auto",
    context: int | None = None,
    threads: int | None = None,
    is_exact: bool = False,
) -> Engine:
    """Open the model in ``path``.

    Raises: CheckpointError where ``path`` is no quantised checkpoint; RequestError for an unknown engine.
    """
    if engine not in ENGINES:
        raise RequestError(f"there is no engine {engine!r}; choose one of {', '.join(ENGINES)}")
    # An engine's libraries are loaded only when it is opened.
    from baichuan2_tpu.checkpoint.quantized import QuantizedCheckpoint  # noqa: PLC0415
    from baichuan2_tpu.engine.cpu import CpuEngine  # noqa: PLC0415

    weights = QuantizedCheckpoint(path)
    return CpuEngine(weights, context=context, threads=threads, is_exact=is_exact)
