"""``baichuan2 quantize --method``: its options, notices and refusals."""

import json
from pathlib import Path

import pytest

from models.tiny_checkpoint import rope_config, write_official
from models.tiny_tokenizer import write_sentencepiece
from running.cli_command import Run

TEXT = "The capital of France is Paris, and the capital of England is London. 你好吗?你好! " * 40


@pytest.fixture
def short_model(tmp_path: Path) -> Path:
    """A model whose context, and so a window of calibration text, is 32 tokens."""
    directory = write_official(tmp_path / "Short", rope_config(vocabulary_size=400, max_context=32))
    write_sentencepiece(directory)
    return directory


def test_a_given_text_calibrates(run: Run, short_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    words = ("--method", "gptq", "--calibration", tmp_path / "text.txt", "--calibration-tokens", 320)
    done = run("quantize", short_model, tmp_path / "out", *words)
    assert (done.code, done.out, done.err) == (0, "", f"wrote {tmp_path / 'out'}\n")
    values = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert values["meta"] == {"head_bits": 8, "method": "gptq"}
    answer = run("generate", tmp_path / "out", "hi", "--temperature", 0, "--max-tokens", 3)
    assert answer.code == 0


def test_without_a_text_the_model_writes_one_and_it_is_told(
    run: Run, short_model: Path, tmp_path: Path
) -> None:
    words = ("--method", "gptq", "--calibration-tokens", 64)
    done = run("quantize", short_model, tmp_path / "out", *words)
    assert done.code == 0
    assert done.err == (
        "the model writes 64 tokens to calibrate with (once)\n"
        "2 of 2 windows of calibration text written\n"
        f"wrote {tmp_path / 'out'}\n"
    )


@pytest.mark.parametrize("option", [("--calibration", "text.txt"), ("--calibration-tokens", "64")])
def test_calibration_for_the_search_is_wrong_usage(
    run: Run, short_model: Path, tmp_path: Path, option: tuple[str, str]
) -> None:
    for search in (("--method", "search"), ("--bits", 8)):
        done = run("quantize", short_model, tmp_path / "out", *search, *option)
        assert (done.code, done.out) == (2, "")
        assert "--calibration and --calibration-tokens need --method scale or gptq" in done.err


@pytest.mark.parametrize(("bits", "method"), [(4, "scale"), (8, None)])
def test_four_bits_are_scaled_unless_asked_otherwise(
    run: Run, short_model: Path, tmp_path: Path, bits: int, method: str | None
) -> None:
    assert run("quantize", short_model, tmp_path / "out", "--bits", bits).code == 0
    values = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert values["meta"].get("method") == method


def test_a_wrong_text_is_one_line(run: Run, short_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"\xff")
    done = run(
        "quantize", short_model, tmp_path / "out", "--method", "gptq", "--calibration", tmp_path / "text.txt"
    )
    assert (done.code, done.out) == (1, "")
    assert done.err == (f"error: {tmp_path / 'text.txt'} is not UTF-8 at byte 0; convert it first\n")
