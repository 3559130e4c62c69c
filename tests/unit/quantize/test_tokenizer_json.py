from pathlib import Path

import pytest
from tokenizers import Tokenizer

from baichuan2_tpu.quantize.tokenizer_json import write_tokenizer_json
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.tokenizer import PROBE
from models.tiny_tokenizer import write_sentencepiece


@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is Paris.",
        "请使用C++写一段冒泡排序算法。",
        " a  b\n\tc12... <td>x</td>",
        "in 巴黎 你好😀",
        PROBE,
    ],
)
def test_it_gives_the_ids_of_the_sentencepiece_model(tmp_path: Path, text: str) -> None:
    write_sentencepiece(tmp_path)
    write_tokenizer_json(tmp_path / "tokenizer.model", tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = open_tokenizer(tmp_path).encode(text)
    assert tokenizer.encode(text).ids == ids
    assert tokenizer.decode(ids) == text


def test_roles_are_single_tokens_in_it(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path)
    write_tokenizer_json(tmp_path / "tokenizer.model", tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("<reserved_106>").ids == [open_tokenizer(tmp_path).control_id("<reserved_106>")]


def test_a_file_that_is_no_sentencepiece_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"placeholder")
    assert write_tokenizer_json(tmp_path / "tokenizer.model", tmp_path / "tokenizer.json") == {}
    assert not (tmp_path / "tokenizer.json").exists()
