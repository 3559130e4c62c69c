"""Bmodels without and with their weights, on a small file made here by the rules of flatbuffers."""

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from baichuan2_tpu.bmodel.header import BmodelFile
from baichuan2_tpu.bmodel.layout import BmodelEnvelope
from baichuan2_tpu.bmodel.weights import (
    align,
    copy_range,
    detach_weights,
    digest_range,
    fill_skeleton,
    read_stages,
)
from baichuan2_tpu.errors import ArtifactError, CompileError
from models.tiny_bmodel import COMMANDS, FIRMWARE, TIME, FlatTable, point, write_bmodel

WEIGHTS = b"first" * 2000
OTHERS = b"second" * 1000


@pytest.fixture
def bmodel(tmp_path: Path) -> Path:
    return write_bmodel(tmp_path / "whole.bmodel", [WEIGHTS, OTHERS, WEIGHTS])


def test_stages_tell_where_their_things_are(bmodel: Path) -> None:
    stages = read_stages(bmodel)
    assert [one.net for one in stages] == ["block_cache_0"] * 3
    assert [(one.inputs, one.own_io_bytes) for one in stages] == [
        ((1000, 0), 0),
        ((1001, 0), 64),
        ((1002, 0), 128),
    ]
    content = bmodel.read_bytes()
    for one, weights in zip(stages, (WEIGHTS, OTHERS, WEIGHTS), strict=True):
        assert content[one.weights.start : one.weights.start + one.weights.nbytes] == weights
        assert one.weights.code == hashlib.sha256(weights).hexdigest()


def test_a_skeleton_has_everything_but_the_weights(bmodel: Path, tmp_path: Path) -> None:
    skeleton = tmp_path / "skeleton.bmodel"
    detach_weights(bmodel, skeleton)
    content = skeleton.read_bytes()
    assert FIRMWARE in content
    assert content.endswith(COMMANDS)
    assert WEIGHTS not in content
    for one in read_stages(skeleton):
        digest = content[one.weights.start : one.weights.start + one.weights.nbytes]
        assert digest.hex() == one.weights.code


def test_weights_can_lie_anywhere_behind_a_skeleton(bmodel: Path, tmp_path: Path) -> None:
    skeleton, result = tmp_path / "skeleton.bmodel", tmp_path / "result.bmodel"
    detach_weights(bmodel, skeleton)
    first = align(skeleton.stat().st_size)
    second = align(first + len(WEIGHTS))
    codes = [hashlib.sha256(one).hexdigest() for one in (WEIGHTS, OTHERS)]
    places = {codes[0]: (first, len(WEIGHTS)), codes[1]: (second, len(OTHERS))}
    end = align(second + len(OTHERS))
    fill_skeleton(skeleton, result, places, end)
    with result.open("r+b") as target:
        for weights, start in ((WEIGHTS, first), (OTHERS, second)):
            target.seek(start)
            target.write(weights)
    fill_skeleton(skeleton, result, places, end)  # again, as after an interruption
    content = result.read_bytes()
    assert len(content) == end
    assert [(one.weights.start, one.weights.nbytes) for one in read_stages(result)] == [
        (first, len(WEIGHTS)),
        (second, len(OTHERS)),
        (first, len(WEIGHTS)),
    ]
    assert content[first : first + len(WEIGHTS)] == WEIGHTS
    assert content[second : second + len(OTHERS)] == OTHERS


def test_the_time_of_creation_leaves_no_trace(tmp_path: Path) -> None:
    results: list[bytes] = []
    for time in (TIME, b"Tue Nov 24 17:00:00 2026\n"):
        made = write_bmodel(tmp_path / "a.bmodel", [WEIGHTS], time)
        detach_weights(made, tmp_path / "b.bmodel")
        end = align(made.stat().st_size)
        code = hashlib.sha256(WEIGHTS).hexdigest()
        fill_skeleton(tmp_path / "b.bmodel", tmp_path / "c.bmodel", {code: (end, 10_000)}, end + 12288)
        results.append((tmp_path / "c.bmodel").read_bytes())
        (tmp_path / "c.bmodel").unlink()
    assert results[0] == results[1]
    assert b"1970" in results[0]


def test_a_time_of_another_form_is_refused(tmp_path: Path) -> None:
    made = write_bmodel(tmp_path / "a.bmodel", [WEIGHTS], b"2026-11-23")
    with pytest.raises(CompileError, match="time of creation has an unknown form; use TPU-MLIR"):
        fill_skeleton(made, tmp_path / "b.bmodel", {}, 0)


def test_a_file_that_is_no_bmodel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bmodel"
    for content in (b"", b"no bmodel at all"):
        path.write_bytes(content)
        with pytest.raises(CompileError, match=r"a\.bmodel: is not a complete bmodel; compile again"):
            read_stages(path)


@pytest.mark.parametrize("nbytes", [64, 100, 5000, -1])
def test_a_bmodel_that_is_cut_off_is_named(bmodel: Path, nbytes: int) -> None:
    bmodel.write_bytes(bmodel.read_bytes()[:nbytes])
    with pytest.raises(CompileError, match=r"whole\.bmodel: is not a complete bmodel; compile again"):
        read_stages(bmodel)


def test_a_net_without_weights_is_of_an_unknown_form(tmp_path: Path) -> None:
    buffer = bytearray(4)
    point(buffer, 0, FlatTable(f2=TIME, f4=[FlatTable(f0=b"empty", f3=[FlatTable(f0=[])])]))
    head = struct.pack("<IIIQ", 0xFF55AAEE, 64, len(buffer), 0).ljust(64, b"\0")
    (tmp_path / "a.bmodel").write_bytes(head + buffer)
    with pytest.raises(CompileError, match="unknown form; use TPU-MLIR"):
        read_stages(tmp_path / "a.bmodel")


def test_a_range_beyond_the_end_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert digest_range(path, 2, 3) == hashlib.sha256(b"234").hexdigest()
    assert digest_range(path, 8, 3) is None
    with (
        path.open("rb") as source,
        (tmp_path / "copy").open("wb") as target,
        pytest.raises(CompileError, match="file: is cut off; compile again"),
    ):
        copy_range(source, 8, target, 0, 3)


def with_weights(path: Path, places: Sequence[tuple[int, int]]) -> Path:
    """Write a bmodel whose stages say that their weights lie at those places."""
    made = write_bmodel(path, [bytes([index]) * 100 for index in range(len(places))])
    content = bytearray(made.read_bytes())
    for stage, (start, nbytes) in zip(read_stages(made), places, strict=True):
        struct.pack_into("<QQ", content, 64 + stage.weights.field, start, nbytes)
    made.write_bytes(content)
    return made


@pytest.mark.parametrize(
    ("places", "fault"),
    [
        ([(0, 4096), (4095, 10)], "its weights overlap each other; compile again"),
        ([(0, 10), (1 << 40, 10)], "is not a complete bmodel; compile again"),
        ([(0, 10), (1 << 63, 1 << 63)], "is not a complete bmodel; compile again"),
    ],
)
def test_weights_in_each_other_or_outside_are_refused(
    tmp_path: Path, places: Sequence[tuple[int, int]], fault: str
) -> None:
    # Taking them out wrote over other parts of the file.
    with pytest.raises(CompileError, match=fault):
        read_stages(with_weights(tmp_path / "a.bmodel", places))


@pytest.mark.parametrize("count", [1 << 20, (1 << 32) - 1])
def test_a_vector_longer_than_the_file_is_refused_unread(tmp_path: Path, count: int) -> None:
    made = write_bmodel(tmp_path / "a.bmodel", [WEIGHTS])
    content = bytearray(made.read_bytes())
    place = content.index(b"block_cache_0") - 4
    struct.pack_into("<I", content, place, count)
    made.write_bytes(content)
    with pytest.raises(CompileError, match="is not a complete bmodel"):
        read_stages(made)


def test_tables_that_share_their_vectors_end(tmp_path: Path) -> None:
    # Every net had the same stages: a file of 100 KB was read as 4 million tables, and so on without end.
    buffer = bytearray(4)
    point(buffer, 0, FlatTable(f4=[FlatTable(f3=[FlatTable(f18=(1,)) for _ in range(2000)])]))
    root = BmodelEnvelope(b"", buffer, 0, 0).root
    (net,) = root.tables(4)
    nets = len(buffer)
    struct.pack_into("<I", buffer, root.field(4), nets - root.field(4))
    buffer += struct.pack("<I", 2000)
    for index in range(2000):
        buffer += struct.pack("<I", (net.position - nets - 4 - 4 * index) % (1 << 32))
    head = struct.pack("<IIIQ", 0xFF55AAEE, 64, len(buffer), 0).ljust(64, b"\0")
    (tmp_path / "a.bmodel").write_bytes(head + buffer)
    with pytest.raises(ArtifactError, match="its description is damaged"):
        BmodelFile.read(tmp_path / "a.bmodel")
