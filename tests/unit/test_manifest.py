"""A manifest is read as it was written, and everything that it should not be is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from baichuan2_tpu.errors import ArtifactError, ContextLengthError
from baichuan2_tpu.manifest import MANIFEST_NAME, Manifest, NetCost, Stage
from models.bundle_manifest import bundle_manifest


def write_values(folder: Path, **changes: Any) -> None:
    """Write a manifest with some values replaced; None removes a key."""
    bundle_manifest().write(folder)
    path = folder / MANIFEST_NAME
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = bundle_manifest(rows=256, layers_per_net=2)
    manifest.write(tmp_path)
    read = Manifest.read(tmp_path)
    assert read == manifest
    assert all(isinstance(stage, Stage) for stage in read.stages)


def test_nets_hold_the_layers_in_order() -> None:
    assert bundle_manifest().block_nets == ("block_cache_0", "block_cache_1")
    assert bundle_manifest(layers_per_net=2).block_nets == ("block_cache_0",)
    assert bundle_manifest(layers_per_net=4).block_nets == ("block_cache_0",)
    assert NetCost("block_cache_0", 16, 128, 1.0, 1, 1).stage == (16, 128)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"format": 1},
            "format 1, made by an older version; this one reads format 2: compile the bundle",
        ),
        ({"format": 3}, "is not of format 2; compile the bundle again"),
        ({"format": None}, "is not of format 2; compile the bundle again"),
        ({"rows": None}, "has other keys than it should: rows; compile the bundle again"),
        ({"prefill": [16]}, "has other keys than it should: prefill; compile the bundle again"),
        ({"stages": [1, 16]}, "a value is not as it should be"),
        ({"stages": [[1, 16, 2]]}, "a value is not as it should be"),
        ({"head_rows": 1}, "a value is not as it should be"),
    ],
)
def test_what_is_not_as_it_should_be_is_named(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    write_values(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=complaint):
        Manifest.read(tmp_path)


def test_a_manifest_that_is_not_an_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text("[]")
    with pytest.raises(ArtifactError, match="is not a JSON object; compile the bundle again"):
        Manifest.read(tmp_path)


def test_a_longer_context_than_the_compiled_one_is_refused_though_there_are_rows() -> None:
    manifest = bundle_manifest(rows=1024)
    assert manifest.checked_context(None) == manifest.checked_context(128) == 128
    with pytest.raises(ContextLengthError, match="129 tokens is asked for, the bundle was compiled for 128"):
        manifest.checked_context(129)
