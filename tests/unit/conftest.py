"""The tokenizers that tests run on: two trained here, and Baichuan2's own where it is at hand."""

from pathlib import Path

import pytest

from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.tokenizer import Tokenizer
from models import tiny_tokenizer

REAL_TOKENIZER = Path(__file__).resolve().parents[3] / "shared" / "data" / "baichuan2-tokenizer"


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("sentencepiece")
    tiny_tokenizer.write_sentencepiece(directory)
    return open_tokenizer(directory)


@pytest.fixture(scope="session")
def bpe_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bpe")
    tiny_tokenizer.write_bpe(directory)
    return directory


@pytest.fixture(scope="session")
def bpe_tokenizer(bpe_directory: Path) -> Tokenizer:
    return open_tokenizer(bpe_directory)


@pytest.fixture(scope="session")
def baichuan2_tokenizer() -> Tokenizer:
    if not (REAL_TOKENIZER / "tokenizer.model").is_file():
        pytest.skip(f"put Baichuan2's tokenizer.model into {REAL_TOKENIZER} to run this")
    return open_tokenizer(REAL_TOKENIZER)


@pytest.fixture(params=["sentencepiece", "bpe", "baichuan2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each tokenizer in turn."""
    tokenizer: Tokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer
