"""A bmodel of one net without the compiler, written by the rules of flatbuffers: it cannot run.

Not here: bmodels that can (``vendor_bmodel``, ``tiny_bundle``).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

from baichuan2_tpu.bmodel.weights import align

__all__ = ["COMMANDS", "FIRMWARE", "TIME", "FlatTable", "point", "write_bmodel"]

FIRMWARE, COMMANDS = b"firmware" * 100, b"commands" * 10
TIME = b"Mon Nov 23 05:14:59 2026\n"


class FlatTable:
    """A flatbuffer table: fields by number, each a number of 8 bytes, a struct, or something pointed to."""

    def __init__(self, **fields: bytes | FlatTable | list[FlatTable] | tuple[int, ...]) -> None:
        self.fields = {int(name[1:]): value for name, value in fields.items()}


def place(buffer: bytearray, value: bytes | FlatTable | Sequence[FlatTable]) -> int:
    """Append a value and return its position; what it points to lies behind it."""
    if isinstance(value, bytes):
        position = len(buffer)
        buffer += struct.pack("<I", len(value)) + value + bytes(1 + -len(value) % 4)
        return position
    if not isinstance(value, FlatTable):
        position = len(buffer)
        buffer += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for index, content in enumerate(value):
            point(buffer, position + 4 + 4 * index, content)
        return position
    count = max(value.fields) + 1
    vtable = len(buffer)
    offsets, size = [0] * count, 4
    for number, field in value.fields.items():
        offsets[number] = size
        size += 8 * len(field) if isinstance(field, tuple) else 4
    buffer += struct.pack(f"<{count + 2}H", 4 + 2 * count, size, *offsets)
    position = len(buffer)
    buffer += struct.pack("<i", position - vtable) + bytes(size - 4)
    for number, field in value.fields.items():
        at = position + offsets[number]
        if isinstance(field, tuple):
            struct.pack_into(f"<{len(field)}Q", buffer, at, *field)
        else:
            point(buffer, at, field)
    return position


def point(buffer: bytearray, at: int, value: bytes | FlatTable | Sequence[FlatTable]) -> None:
    struct.pack_into("<I", buffer, at, place(buffer, value) - at)


def stage(code: bytes, start: int, nbytes: int, address: int, own_io: int) -> FlatTable:
    tensors = [FlatTable(f3=(address,)), FlatTable(f0=b"positions")]
    return FlatTable(f0=tensors, f4=FlatTable(f1=code, f2=(start, nbytes)), f18=(own_io,))


def write_bmodel(path: Path, weights: Sequence[bytes], time: bytes = TIME) -> Path:
    """Write a net with a stage for every content of ``weights``; equal ones are stored once."""
    data, starts = FIRMWARE.ljust(align(len(FIRMWARE)), b"\0"), {}
    for content in weights:
        starts.setdefault(content, len(data))
        if starts[content] == len(data):
            data += content.ljust(align(len(content)), b"\0")
    data += COMMANDS
    stages = [
        stage(hashlib.sha256(content).digest(), starts[content], len(content), 1000 + index, 64 * index)
        for index, content in enumerate(weights)
    ]
    buffer = bytearray(4)
    point(buffer, 0, FlatTable(f2=time, f4=[FlatTable(f0=b"block_cache_0", f3=stages)]))
    buffer += bytes(align(64 + len(buffer)) - 64 - len(buffer))
    head = struct.pack("<IIIQ", 0xFF55AAEE, 64, len(buffer), len(data)).ljust(64, b"\0")
    path.write_bytes(head + buffer + data)
    return path
