"""Find the files of a GGUF model: one, or the parts that llama.cpp's split tool numbers.

Not here: what is in them (``formats.gguf_file``).
Source: ``llama_split_path`` of llama.cpp: ``model-00001-of-00003.gguf``.
"""

from __future__ import annotations

import re
from pathlib import Path

from baichuan2_tpu.errors import CheckpointError

__all__ = ["find_gguf", "list_parts", "model_name"]

_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
_SHOWN_MODELS = 6


def list_parts(path: Path) -> list[Path]:
    """Return the files of the model that ``path`` is a file of, in order; any part stands for all of them.

    Raises: CheckpointError naming the part that is not there.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, _, count = match.groups()
    parts: list[Path] = []
    for number in range(1, int(count) + 1):
        part = path.with_name(f"{stem}-{number:05d}-of-{count}.gguf")
        if not part.is_file():
            raise CheckpointError(
                f"{part}: is not there, and the model is split into {int(count)} files; "
                "fetch all of them into one folder"
            )
        parts.append(part)
    return parts or [path]


def model_name(path: Path) -> str:
    """Return the name of the model that ``path`` is a file of, without the number of a part."""
    match = _PART.fullmatch(path.name)
    return path.stem if match is None else match[1]


def find_gguf(directory: Path) -> Path | None:
    """Return the first file of the one GGUF model in a folder, or None when there is none.

    Raises: CheckpointError when there are several to choose from, or a part is missing.
    """
    first_files = sorted({list_parts(path)[0] for path in directory.glob("*.gguf")})
    if len(first_files) > 1:
        names = ", ".join(path.name for path in first_files[:_SHOWN_MODELS])
        more = ", …" if len(first_files) > _SHOWN_MODELS else ""
        raise CheckpointError(
            f"{directory}: holds {len(first_files)} GGUF models ({names}{more}); name one of the files"
        )
    return first_files[0] if first_files else None
