"""Which files of a repository a model consists of: data alone, and one set of weights.

No ``.py`` file is ever wanted: nothing in a model is code to us. Safetensors go before ``.bin`` files, which
hold the same numbers. Not here: listing (``hub``).
Source: the names that transformers gives to shards, "model-00001-of-00003.safetensors".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch.transfer.hubs import RemoteFile

__all__ = ["select_files"]

_REQUIRED = ("config.json", "tokenizer.model")
_OPTIONAL = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
_FILE_LIMIT_BYTES = 1 << 40
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


def select_files(files: Mapping[str, RemoteFile], where: str) -> tuple[RemoteFile, ...]:
    """Return the files to fetch, small ones first, so that what is wrong shows early.

    Raises: FetchError when the repository lacks a file that a model needs, or lists it without proof.
    """
    missing = [name for name in _REQUIRED if name not in files]
    if missing:
        raise FetchError(f"{where}: holds no {' and no '.join(missing)}; take another --revision or --source")
    names = [*_REQUIRED, *(name for name in _OPTIONAL if name in files), *_weight_names(files, where)]
    chosen = [files[name] for name in names]
    for file in chosen:
        _check(file, where)
    return tuple(sorted(chosen, key=lambda file: (file.nbytes, file.name)))


def _check(file: RemoteFile, where: str) -> None:
    """Check that a file is listed with a size and a digest, without which it could not be proven."""
    if not 0 < file.nbytes <= _FILE_LIMIT_BYTES:
        raise FetchError(f"{where}: lists {file.name} with {file.nbytes} bytes; take another --source")
    if not file.digest.is_formed:
        raise FetchError(
            f"{where}: lists {file.name} with the digest {file.digest}, which is none; take another --source"
        )


def _weight_names(files: Mapping[str, RemoteFile], where: str) -> list[str]:
    """Return the names of the first whole set of weights: one file, or an index with all its shards."""
    for stem, suffix in _WEIGHTS:
        if f"{stem}{suffix}" in files:
            return [f"{stem}{suffix}"]
        index = f"{stem}{suffix}.index.json"
        shards = _whole_set(files, stem, suffix)
        if index in files and shards:
            return [index, *shards]
    raise FetchError(
        f"{where}: holds no whole set of weights, neither model.safetensors nor pytorch_model.bin nor all "
        "shards of one with its .index.json; take another --revision or --source"
    )


def _whole_set(files: Mapping[str, RemoteFile], stem: str, suffix: str) -> list[str]:
    """Return the shards of a set, none when one of them is missing."""
    found: dict[int, str] = {}
    counts: set[int] = set()
    for name in files:
        match = _SHARD.fullmatch(name[len(stem) : -len(suffix)])
        if match and name == f"{stem}{match[0]}{suffix}":
            found[int(match[1])] = name
            counts.add(int(match[2]))
    is_whole = len(counts) == 1 and set(found) == set(range(1, max(counts) + 1))
    return [found[number] for number in sorted(found)] if is_whole else []
