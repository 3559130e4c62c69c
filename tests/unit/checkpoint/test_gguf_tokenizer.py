from pathlib import Path

import pytest
from gguf import GGUFReader
from tokenizers import Tokenizer

from baichuan2_tpu.checkpoint.formats.gguf_tokenizer import check_tokenizer, write_tokenizer
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.text.bpe_tokenizer import BpeTokenizer
from baichuan2_tpu.text.sentencepiece_tokenizer import SentencePieceTokenizer
from models.tiny_checkpoint import rope_config
from models.tiny_gguf import BPE, sentencepiece_entries, write_gguf
from models.tiny_tokenizer import write_sentencepiece

TOKENIZER = BPE | {"tokenizer.chat_template": "{{ messages }}"}
TOKENS: list[str] = BPE["tokenizer.ggml.tokens"]  # pyright: ignore[reportAssignmentType]
TEXTS = ["ab ab", "The capital\n\tof <td>France... 你好吗? \U0001f600", "  two  spaces ", "1234", ""]


@pytest.fixture(scope="module")
def piece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    write_sentencepiece(folder)
    return folder


def read_entries(path: Path, entries: dict[str, object]) -> dict[str, object]:
    """Return the entries as they come out of a file."""
    write_gguf(path, rope_config(), {}, entries=entries)
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


def refusal(metadata: dict[str, object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_tokenizer(Path("m.gguf"), metadata)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_the_tokenizer_cuts_and_joins_as_the_metadata_say(tmp_path: Path) -> None:
    check_tokenizer(tmp_path, TOKENIZER)
    write_tokenizer(TOKENIZER, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = {token: i for i, token in enumerate(TOKENS)}
    assert tokenizer.encode("ab ab").ids == [ids["ab"], ids["Ġab"]]
    # smollm cuts every digit on its own, whatever the merges say.
    assert tokenizer.encode("12").ids == [ids["1"], ids["2"]]
    assert tokenizer.encode("<|im_start|>a<|im_end|>").ids == [1, ids["a"], 2]
    assert tokenizer.decode(tokenizer.encode("Ünï 你好\n 12").ids) == "Ünï 你好\n 12"
    settings = (tmp_path / "tokenizer_config.json").read_text()
    assert '"eos_token": "<|im_end|>"' in settings
    assert '"chat_template": "{{ messages }}"' in settings


def test_llama_3_cuts_numbers_in_threes_and_takes_whole_words(tmp_path: Path) -> None:
    tokens = [*TOKENS, "123", "Ġword"]
    write_tokenizer(
        BPE
        | {
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        },
        tmp_path,
    )
    tokenizer = BpeTokenizer.open(tmp_path / "tokenizer.json")
    ids = {token: i for i, token in enumerate(tokens)}
    assert tokenizer.encode("123123 word") == [ids["123"], ids["123"], ids["Ġword"]]


def test_tokens_that_users_added_are_text_and_padding_is_left_out(tmp_path: Path) -> None:
    """Padding was part of the vocabulary, and a model could write "[PAD0]"."""
    tokens = [*TOKENS, "<tool>", "[PAD0]", "[PAD1]"]
    write_tokenizer(
        BPE
        | {
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3) + [4, 5, 5],
            "tokenizer.ggml.padding_token_id": len(tokens) - 1,
        },
        tmp_path,
    )
    tokenizer = BpeTokenizer.open(tmp_path / "tokenizer.json")
    assert tokenizer.encode("a<tool>")[1:] == [len(TOKENS)]
    assert tokenizer.decode([len(TOKENS)]) == "<tool>"
    assert tokenizer.vocabulary_size == len(TOKENS) + 1


def test_sentencepiece_gives_the_ids_of_the_model_it_was_made_of(tmp_path: Path, piece_folder: Path) -> None:
    """It was refused: tokenizer.ggml.model is 'llama', allowed is gpt2."""
    metadata = read_entries(tmp_path / "m.gguf", sentencepiece_entries(piece_folder, 512))
    check_tokenizer(tmp_path, metadata)
    write_tokenizer(metadata, tmp_path)
    original = SentencePieceTokenizer.open(piece_folder / "tokenizer.model")
    restored = SentencePieceTokenizer.open(tmp_path / "tokenizer.model")
    assert restored.vocabulary_size == original.vocabulary_size < 512
    assert restored.stop_ids == original.stop_ids == {2}
    for text in TEXTS:
        assert restored.encode(text) == original.encode(text), text
    for name in ("<reserved_106>", "<reserved_107>", "</s>", "<SEP>", "<td>"):
        assert restored.control_id(name) == original.control_id(name), name
    for token_id in range(original.vocabulary_size):
        assert restored.token_bytes(token_id) == original.token_bytes(token_id), token_id


def test_a_tokenizer_that_puts_a_space_before_a_text_is_refused(piece_folder: Path) -> None:
    entries = sentencepiece_entries(piece_folder, 0)
    pieces: list[str] = entries["tokenizer.ggml.tokens"]  # pyright: ignore[reportAssignmentType]
    entries["tokenizer.ggml.tokens"] = [piece.replace("reserved", "extra") for piece in pieces]
    assert "its tokenizer puts a space before every text (tokenizer.ggml.add_space_prefix)" in refusal(
        entries
    )
    check_tokenizer(Path("m.gguf"), entries | {"tokenizer.ggml.add_space_prefix": False})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model is 't5', allowed is gpt2 or llama"),
        ({"tokenizer.ggml.pre": "qwen2"}, "pre is 'qwen2', allowed is gpt-2 or llama-bpe or smollm"),
        ({"tokenizer.ggml.token_type": [1]}, "264 tokens, 1 token types"),
        ({"tokenizer.ggml.tokens": "text"}, "tokenizer.ggml.tokens is 'text', allowed is a list of str"),
        ({"tokenizer.ggml.merges": [1]}, "tokenizer.ggml.merges is [1], allowed is a list of str"),
        ({"tokenizer.ggml.merges": ["ab"]}, "the merge 'ab' has one part"),
        ({"tokenizer.ggml.merges": ["x\n y"]}, "its tokenizer is damaged"),
        ({"tokenizer.ggml.eos_token_id": 10**9}, "is 1000000000, there are 264 tokens"),
    ],
)
def test_a_bpe_that_cannot_be_written_is_refused(change: dict[str, object], message: str) -> None:
    assert message in refusal(TOKENIZER | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.scores": None}, "tokenizer.ggml.scores is None, allowed is a list of float"),
        ({"tokenizer.ggml.scores": [1.0]}, "tokens, 1 scores"),
        ({"tokenizer.ggml.token_type": [-1]}, "token types"),
    ],
)
def test_pieces_that_do_not_fit_together_are_refused(
    piece_folder: Path, change: dict[str, object], message: str
) -> None:
    assert message in refusal(sentencepiece_entries(piece_folder, 0) | change)


@pytest.mark.parametrize(
    ("key", "value"),
    [("scores", float("nan")), ("tokens", ""), ("token_type", -1), ("token_type", 1 << 40)],
)
def test_a_piece_that_cannot_be_written_is_refused(piece_folder: Path, key: str, value: object) -> None:
    entries = sentencepiece_entries(piece_folder, 0)
    values = list(entries[f"tokenizer.ggml.{key}"])  # pyright: ignore[reportArgumentType, reportUnknownVariableType]
    values[-1] = value
    assert "its tokenizer is damaged" in refusal(entries | {f"tokenizer.ggml.{key}": values})
