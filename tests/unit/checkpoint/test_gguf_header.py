"""A header that counts what is not there, or what no model has, is refused before the library reads it."""

import struct
from pathlib import Path

import pytest

from baichuan2_tpu.checkpoint.formats.gguf_header import check_header
from baichuan2_tpu.errors import CheckpointError


def text(content: str | bytes) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw)) + raw


def header(*parts: bytes, tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts)


def tensor(shape: tuple[int, ...] = (4, 4), *, offset: int = 0, name: str = "w") -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", 0, offset)


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        check_header(path)
    return str(caught.value)


TWO = struct.pack("<Q", 2)
STRING, ARRAY, UINT8, UINT32 = (struct.pack("<I", kind) for kind in (8, 9, 0, 4))
MANY = struct.pack("<Q", 1 << 60)


def test_a_header_of_every_kind_of_entry_is_read(tmp_path: Path) -> None:
    entries = [
        text("a") + UINT32 + bytes(4),
        text("b") + STRING + text("你好"),
        text("c") + ARRAY + STRING + TWO + text("x") + text("y"),
        text("d") + ARRAY + UINT8 + struct.pack("<Q", 3) + bytes(3),
    ]
    path = tmp_path / "m.gguf"
    content = header(*entries, tensor(), tensor((8,)), entries=4, tensors=2)
    path.write_bytes(content)
    check_header(path)
    assert "it ends within its header" in refusal(path, content[:-1])  # so all of it was read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot mmap an empty file"),
        (b"GGUF", "it ends within its header"),
        (b"GGML" + bytes(60), "it does not begin with GGUF"),
        (header(version=1), "its version is 1, allowed are 2 and 3"),
        (header(version=3 << 24), "allowed are 2 and 3, little-endian"),
        (header(tensors=1 << 60), "it has 1152921504606846976 tensors, at most 65536 are allowed"),
        (header(entries=1 << 60), "it has 1152921504606846976 entries, at most 4096 are allowed"),
        (header(entries=3), "it ends within its header"),
        (header(MANY, entries=1), "a name has 1152921504606846976 bytes, at most 1024"),
        (header(text("a") + STRING + MANY, entries=1), "a text of 'a' has 1152921504606846976 bytes"),
        (
            header(text("a") + ARRAY + STRING + TWO + MANY, entries=1),
            "a text of 'a' has 115",
        ),
        (header(text("a") + ARRAY + STRING + TWO + text("b"), entries=1), "it ends within"),
        (header(text("a") + ARRAY + STRING + struct.pack("<QQ", 1, 99), entries=1), "it ends within"),
        (header(text("a") + ARRAY + STRING + MANY, entries=1), "1152921504606846976 values of 'a', at most"),
        (header(text("a") + ARRAY + ARRAY + MANY, entries=1), "'a' is an array of arrays"),
        (
            header(text("a") + UINT8[:0] + struct.pack("<I", 77), entries=1),
            "'a' is of type 77, which is unknown",
        ),
        (header(text(b"\xff\xfe"), entries=1), "a name is not UTF-8"),
        (header(text("a") + ARRAY + UINT32 + struct.pack("<Q", 9), entries=1), "it ends within its header"),
        (header(tensor(()), tensors=1), "tensor 'w' has 0 dimensions, 1 to 4 are allowed"),
        (header(tensor((1,) * 5), tensors=1), "tensor 'w' has 5 dimensions, 1 to 4 are allowed"),
        (header(tensor((1 << 40, 1 << 40)), tensors=1), "which no model has"),
        (header(tensor((4, 0)), tensors=1), "has the shape [0, 4], which no model has"),
        (header(tensor(offset=1 << 50), tensors=1), "tensor 'w' lies at 1125899906842624, the file has"),
    ],
)
def test_a_header_that_no_model_has_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(tmp_path / "m.gguf", content)


def test_the_values_of_all_arrays_are_counted_together(tmp_path: Path) -> None:
    array = ARRAY + UINT8 + struct.pack("<Q", 3_000_000) + bytes(3_000_000)
    content = header(text("a") + array, text("b") + array, entries=2)
    assert "it has more than 4000000 values" in refusal(tmp_path / "m.gguf", content)
