"""Of all that a repository holds, data alone is wanted, and one whole set of weights."""

import pytest

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch.models import select_files
from baichuan2_tpu.fetch.transfer.hubs import RemoteFile
from baichuan2_tpu.files import Digest

SMALL = ["config.json", "tokenizer.model"]


def select(*names: str, nbytes: int = 10) -> list[str]:
    files = {name: RemoteFile(name, nbytes, Digest("sha256", "0" * 64)) for name in names}
    return [file.name for file in select_files(files, "hub: repository")]


def shards(stem: str, suffix: str, count: int) -> list[str]:
    return [f"{stem}-{number + 1:05d}-of-{count:05d}{suffix}" for number in range(count)]


def test_code_and_pictures_stay_where_they_are() -> None:
    chosen = select(
        *SMALL, "pytorch_model.bin", "modeling_baichuan.py", "README.md", "logo.png", ".gitattributes"
    )
    assert chosen == ["config.json", "pytorch_model.bin", "tokenizer.model"]


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (
            ["pytorch_model.bin.index.json", *shards("pytorch_model", ".bin", 2)],
            [*shards("pytorch_model", ".bin", 2), "pytorch_model.bin.index.json"],
        ),
        (
            ["pytorch_model.bin", "model.safetensors.index.json", *shards("model", ".safetensors", 3)],
            [*shards("model", ".safetensors", 3), "model.safetensors.index.json"],
        ),
        (
            ["pytorch_model.bin", "model.safetensors.index.json", *shards("model", ".safetensors", 3)[1:]],
            ["pytorch_model.bin"],
        ),
        (["pytorch_model.bin", *shards("model", ".safetensors", 2)], ["pytorch_model.bin"]),
    ],
)
def test_one_whole_set_of_weights_is_chosen(weights: list[str], chosen: list[str]) -> None:
    assert [name for name in select(*SMALL, *weights) if name not in SMALL] == chosen


@pytest.mark.parametrize(
    "weights",
    [
        [],
        ["tf_model.h5"],
        shards("model", ".safetensors", 2),
        ["model.safetensors.index.json"],
        [
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00003.safetensors",
        ],
        ["model.safetensors.index.json", "model-00000-of-00001.safetensors"],
        ["model.safetensors.index.json", "model-1-of-1.safetensors"],
    ],
)
def test_no_whole_set_is_an_error(weights: list[str]) -> None:
    with pytest.raises(FetchError, match="hub: repository: holds no complete set of weights"):
        select(*SMALL, *weights)


@pytest.mark.parametrize("missing", SMALL)
def test_missing_small_file_is_named(missing: str) -> None:
    with pytest.raises(FetchError, match=f"holds no {missing}; take another --revision"):
        select(*(name for name in SMALL if name != missing), "pytorch_model.bin")


def test_empty_file_is_named() -> None:
    with pytest.raises(FetchError, match=r"lists config\.json with 0 bytes"):
        select(*SMALL, "pytorch_model.bin", nbytes=0)
