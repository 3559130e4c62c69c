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


def test_what_the_library_says_of_a_damaged_file_stays_one_line(bpe_directory: Path, tmp_path: Path) -> None:
    # It quotes tokens as they are, line breaks among them.
    values = json.loads((bpe_directory / "tokenizer.json").read_text("utf-8"))
    values["model"]["merges"][0] = ["a\n", "b"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(CheckpointError, match="is not a tokenizer") as caught:
        open_tokenizer(tmp_path)
    assert str(caught.value).isprintable()


def changed(bpe_directory: Path, folder: Path, **settings: object) -> Path:
    """Write the tokenizer as a fine-tune leaves it: with settings of its training in it."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((bpe_directory / name).read_bytes())
    values = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**values, **settings}), "utf-8")
    return folder


def test_truncation_and_padding_of_a_training_are_off(bpe_directory: Path, tmp_path: Path) -> None:
    """A question was cut off at 48 of 405 tokens, and 63 control ids stood before a short one."""
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    tokenizer = open_tokenizer(changed(bpe_directory, tmp_path, truncation=truncation, padding=padding))
    text = "The capital of France is Paris. " * 40
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("hi") == open_tokenizer(bpe_directory).encode("hi")


REWRITING = [
    {"type": "Lowercase"},
    {"type": "NFKC"},
    {"type": "NFC"},
    {"type": "NFD"},
    {"type": "StripAccents"},
    {"type": "Strip", "strip_left": False, "strip_right": True},
    {"type": "Replace", "pattern": {"String": "\u3000"}, "content": " "},
    {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
]


@pytest.mark.parametrize("normalizer", REWRITING, ids=lambda normalizer: normalizer["type"])
def test_a_normalizer_that_rewrites_text_is_refused_by_name(
    bpe_directory: Path, tmp_path: Path, normalizer: dict[str, object]
) -> None:
    """ "Hello" became "hello" without a word."""
    with pytest.raises(CheckpointError, match=f"its normalizer is {normalizer['type']}, none is allowed"):
        open_tokenizer(changed(bpe_directory, tmp_path, normalizer=normalizer))


def test_a_normalizer_that_changes_nothing_is_allowed(bpe_directory: Path, tmp_path: Path) -> None:
    normalizer = {"type": "Sequence", "normalizers": []}
    assert open_tokenizer(changed(bpe_directory, tmp_path, normalizer=normalizer)).encode("Hello")


def test_an_added_token_that_swallows_spaces_is_refused(bpe_directory: Path, tmp_path: Path) -> None:
    added = json.loads((bpe_directory / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    tag = {**added[0], "id": 4000, "content": "<tag>", "special": False, "lstrip": True}
    with pytest.raises(CheckpointError, match=r"' <tag> x <tag>.*' comes back as '<tag> x<tag>"):
        open_tokenizer(changed(bpe_directory, tmp_path, added_tokens=[*added, tag]))


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


def test_a_file_over_which_the_library_panics_is_refused(bpe_directory: Path, tmp_path: Path) -> None:
    # A panic of Rust is no Exception and went through to the terminal.
    values = json.loads((bpe_directory / "tokenizer.json").read_text("utf-8"))
    vocabulary = values["model"]["vocab"]
    del vocabulary[next(reversed(vocabulary))]
    vocabulary["Ý"] = 10**9
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer: "):
        open_tokenizer(tmp_path)
