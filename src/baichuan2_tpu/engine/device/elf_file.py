"""A shared library in ELF form: where it keeps the addresses of the functions that it imports, and its texts.

Only as much of the format as two questions need: the slots of one function, and the place of one text.
Not here: changing them in memory (``simulator``).
Source: System V ABI, AMD64 supplement, "Object Files"; proc(5) for ``/proc/self/maps``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["call_slots", "load_address", "text_addresses"]

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_HEADER = struct.Struct("<6s10xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_RELOCATION = struct.Struct("<QQq")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATIONS, _NOT_IN_FILE, _DYNAMIC_SYMBOLS = 4, 8, 11  # SHT_RELA, SHT_NOBITS, SHT_DYNSYM
_GLOBAL_DATA, _JUMP_SLOT = 6, 7  # R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    nbytes: int
    link: int
    info: int
    alignment: int
    entry_nbytes: int


def call_slots(path: Path, function: str) -> list[int]:
    """Return the addresses, from the library's start, that hold the address of an imported function.

    Raises: ValueError when ``path`` is not a 64-bit ELF library.
    """
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise ValueError(f"{path}: is not a 64-bit ELF library")
    sections = _sections(data)
    return [
        slot
        for section in sections
        if section.kind == _RELOCATIONS and sections[section.link].kind == _DYNAMIC_SYMBOLS
        for slot, symbol in _imports(data, section)
        if _symbol_name(data, sections, section.link, symbol) == function.encode()
    ]


def text_addresses(path: Path, text: bytes) -> list[int]:
    """Return the addresses, from the library's start, of a text that ends with a zero.

    Raises: ValueError when ``path`` is not a 64-bit ELF library.
    """
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise ValueError(f"{path}: is not a 64-bit ELF library")
    loaded = [section for section in _sections(data) if section.address and section.kind != _NOT_IN_FILE]
    return [
        match.start() + 1 - section.offset + section.address
        for match in re.finditer(re.escape(b"\0" + text + b"\0"), data)
        for section in loaded
        if section.offset <= match.start() < section.offset + section.nbytes
    ]


def load_address(path: Path) -> int:
    """Return the address at which a library is loaded in this process.

    Raises: ValueError when it is not.
    """
    real = str(path.resolve())
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    starts = [int(line.partition("-")[0], 16) for line in lines if line.endswith(f" {real}")]
    if not starts:
        raise ValueError(f"{path}: is not loaded")
    return min(starts)


def _sections(data: bytes) -> list[_Section]:
    *_, table, _, _, _, _, entry_nbytes, count, _ = _HEADER.unpack_from(data)
    return [_Section(*_SECTION.unpack_from(data, table + index * entry_nbytes)) for index in range(count)]


def _imports(data: bytes, section: _Section) -> Iterator[tuple[int, int]]:
    """Yield (slot, index of its symbol)."""
    entries = data[section.offset : section.offset + section.nbytes]
    for slot, info, _ in _RELOCATION.iter_unpack(entries):
        if info & 0xFFFFFFFF in (_GLOBAL_DATA, _JUMP_SLOT):
            yield slot, info >> 32


def _symbol_name(data: bytes, sections: list[_Section], table: int, symbol: int) -> bytes:
    symbols = sections[table]
    start, *_ = _SYMBOL.unpack_from(data, symbols.offset + symbol * _SYMBOL.size)
    start += sections[symbols.link].offset
    return data[start : data.index(b"\0", start)]
