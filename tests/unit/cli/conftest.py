"""A tiny model with random weights, quantised once, and a way to run the command in this process."""

import sys
from pathlib import Path

import pytest

from baichuan2_tpu import cli
from baichuan2_tpu.quantize import quantize
from models.tiny_checkpoint import rope_config, write_official
from models.tiny_tokenizer import write_sentencepiece
from running.cli_command import Outcome, Run


@pytest.fixture(scope="session")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Baichuan2 in small, in the official layout; its weights are random, so it talks nonsense."""
    directory = tmp_path_factory.mktemp("models") / "Tiny-Chat"
    write_official(directory, rope_config(vocabulary_size=400))
    write_sentencepiece(directory)
    return directory


@pytest.fixture(scope="session")
def model(float_model: Path) -> Path:
    quantized = float_model.with_name("Tiny-Chat-w4")
    quantize(float_model, quantized, bits=4)
    return quantized


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command with these words; the user's folders are empty ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run_command(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["baichuan2", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Outcome(ended.value.code, out, err)

    return run_command
