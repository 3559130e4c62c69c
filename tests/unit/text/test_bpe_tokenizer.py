"""What is particular to ``tokenizer.json``: special tokens, missing bytes, damaged files."""

import json
from pathlib import Path
from threading import Event, Thread

import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.text.bpe_tokenizer import BpeTokenizer
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.tokenizer import Tokenizer


def test_a_typed_special_token_is_spelled_out(bpe_tokenizer: Tokenizer) -> None:
    ids = bpe_tokenizer.encode("<|im_start|>system")
    assert bpe_tokenizer.control_id("<|im_start|>") not in ids
    assert len(ids) > 2


def test_other_threads_run_while_a_text_is_cut(bpe_tokenizer: Tokenizer) -> None:
    # The library's ``encode`` keeps the interpreter's lock: a text of 4 MB stopped a server for 3 seconds.
    beats: list[int] = []
    is_over = Event()

    def count() -> None:
        while not is_over.wait(0.001):
            beats.append(len(beats))

    beating = Thread(target=count)
    beating.start()
    while not beats:  # the thread has begun
        pass
    beats.clear()
    bpe_tokenizer.encode("hello world " * 50_000)
    seen = len(beats)
    is_over.set()
    beating.join()
    assert seen > 10


def test_the_end_token_stops(bpe_tokenizer: Tokenizer) -> None:
    assert bpe_tokenizer.stop_ids == {bpe_tokenizer.control_id("<|im_end|>")}


@pytest.mark.parametrize("eos", ["<|im_end|>", {"content": "<|im_end|>", "special": True}])
def test_the_end_token_is_read_as_text_or_object(bpe_directory: Path, tmp_path: Path, eos: object) -> None:
    (tmp_path / "tokenizer.json").write_bytes((bpe_directory / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    assert len(open_tokenizer(tmp_path).stop_ids) == 1


def test_an_added_token_that_is_not_special_is_text(bpe_directory: Path) -> None:
    library = LibraryTokenizer.from_file(str(bpe_directory / "tokenizer.json"))
    library.add_tokens(["<工具>"])
    tokenizer = BpeTokenizer(library)
    assert tokenizer.decode(tokenizer.encode("a<工具>b")) == "a<工具>b"
    assert tokenizer.control_id("<工具>") is None


def byte_level(alphabet: list[str]) -> LibraryTokenizer:
    library = LibraryTokenizer(models.BPE({name: i for i, name in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    return library


def test_a_character_without_token_becomes_a_replacement_character() -> None:
    """The library drops it, and the model would be asked something else without a word."""
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"\u0104"})
    tokenizer = BpeTokenizer(byte_level(alphabet))
    assert tokenizer.decode(tokenizer.encode("a\x04é")) == "a\ufffdé"


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    LibraryTokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="not a byte-level BPE"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_damaged_configuration_is_refused_by_name(
    bpe_directory: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((bpe_directory / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        open_tokenizer(tmp_path)
