"""Baichuan2's vectors, and the control ids of its SentencePiece model."""

import io
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.tokenizer import Tokenizer
from models.tiny_tokenizer import SENTENCEPIECE_RESERVED, write_sentencepiece


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("你好", [16829]),
        ("你好吗", [16829, 93122]),
        ("</s>", [2801, 92319, 92574]),
        (
            "请使用C++写一段冒泡排序算法。",
            [92676, 1964, 92344, 62, 62, 93041, 5662, 93898, 93661, 22533, 18176, 66],
        ),
        ("\n\t", [5, 6]),
        ("<td>...", [13, 75]),
    ],
)
def test_baichuan2_vectors(baichuan2_tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert baichuan2_tokenizer.encode(text) == ids


def test_baichuan2_control_ids(baichuan2_tokenizer: Tokenizer) -> None:
    names = ["<SEP>", "<CLS>", "<reserved_12>", "<reserved_106>", "<reserved_107>", "<reserved_999>", "\n"]
    assert [baichuan2_tokenizer.control_id(name) for name in names] == [3, 4, 101, 195, 196, 1088, None]
    assert baichuan2_tokenizer.stop_ids == {2}
    assert baichuan2_tokenizer.vocabulary_size == 125_696


def test_baichuan2_reserved_literal_is_cut_behind_its_bracket(baichuan2_tokenizer: Tokenizer) -> None:
    encode = baichuan2_tokenizer.encode
    assert encode("a<reserved_107>b") == encode("a<") + encode("reserved_107>b")


@pytest.mark.parametrize("name", SENTENCEPIECE_RESERVED)
def test_a_reserved_piece_decodes_to_nothing(sentencepiece_tokenizer: Tokenizer, name: str) -> None:
    token_id = sentencepiece_tokenizer.control_id(name)
    assert token_id is not None
    assert sentencepiece_tokenizer.decode([token_id]) == ""


@pytest.mark.parametrize("text", ["\n", "\t", "<td>", "..."])
def test_a_piece_of_text_stays_one_token(sentencepiece_tokenizer: Tokenizer, text: str) -> None:
    assert len(sentencepiece_tokenizer.encode(text)) == 1


@pytest.mark.parametrize("content", [b"", b"no model", b"\n\x0b\n\x05<unk>"])
def test_a_damaged_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a SentencePiece model"):
        open_tokenizer(tmp_path)


def test_a_model_with_a_piece_that_is_not_utf_8_is_refused_by_name(tmp_path: Path) -> None:
    # Was a UnicodeDecodeError of the library.
    write_sentencepiece(tmp_path)
    content = (tmp_path / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content.replace(b"<0x41>", b"<0x4\xe0>", 1))
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a SentencePiece model: "):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_tokenizer_that_is_a_link_to_a_device_is_refused(tmp_path: Path, name: str) -> None:
    # /dev/zero was read until the memory was full.
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError):
        open_tokenizer(tmp_path)


def test_a_model_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: cannot be read"):
        open_tokenizer(tmp_path)


def test_a_model_that_rewrites_text_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a dummy prefix is put before this"] * 9),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(CheckpointError, match="rewrites text"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("rule", ["nfkc", "nfkc_cf", "nmt_nfkc"])
def test_a_model_that_normalises_characters_is_refused(tmp_path: Path, rule: str) -> None:
    """Full-width forms became half-width, and capitals small, though spaces were kept."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["The capital of France is Paris"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name=rule,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n", "\t"],
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(CheckpointError, match="rewrites text"):
        open_tokenizer(tmp_path)


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        open_tokenizer(tmp_path)
