"""Calibrated quantising of whole models: what it gains, what it refuses, and how it goes on after a kill."""

import io
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.packing import dequantize
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import Method, ModelConfig
from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.quantize import Calibration, QuantizeEvent, quantize
from baichuan2_tpu.quantize.calibration_text import open_windows
from baichuan2_tpu.quantize.journal import Journal
from baichuan2_tpu.text.registry import open_tokenizer
from models.reference import reference_logits
from models.tiny_checkpoint import (
    alibi_config,
    float_weights,
    official_tensors,
    restored_weights,
    rope_config,
    write_bin,
    write_official,
)
from models.tiny_tokenizer import write_sentencepiece

WORDS = [
    *["The", "capital", "of", "France", "is", "Paris", "and", "system", "user", "assistant", "end"],
    *"你好吗请使用写一段代码0123+",
]


def random_text(words: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


TEXT = random_text(1200, seed=1)
SHORT = {"vocabulary_size": 448, "max_context": 32}
ROPE, ALIBI = rope_config(**SHORT), alibi_config(**SHORT)


def write_model(directory: Path, config: ModelConfig = ROPE) -> Path:
    write_official(directory, config)
    write_sentencepiece(directory)
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "float")


@pytest.fixture
def given(tmp_path: Path) -> Calibration:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return Calibration(tmp_path / "text.txt", tokens=320)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def config_values(directory: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads((directory / "config.json").read_text())["quantization_config"]
    return values


def logits(path: Path, tokens: list[int]) -> np.ndarray:
    """Return the logits that quantised weights give in float arithmetic."""
    checkpoint = QuantizedCheckpoint(path)
    return reference_logits(checkpoint.config, restored_weights(checkpoint), tokens)


@pytest.mark.parametrize("config", [ROPE, ALIBI], ids=["rope", "alibi"])
def test_logits_of_an_unseen_text_are_closer_than_by_the_search(
    tmp_path: Path, given: Calibration, config: ModelConfig
) -> None:
    source = write_model(tmp_path / "model", config)
    quantize(source, tmp_path / "search", bits=4, method="search")
    quantize(source, tmp_path / "gptq", bits=4, method="gptq", calibration=replace(given, tokens=1600))
    tokens = open_tokenizer(source).encode(random_text(32, seed=2))[:32]
    expected = reference_logits(config, float_weights(config, 0), tokens)
    errors = {
        name: np.square(logits(tmp_path / name, tokens) - expected).sum() for name in ("search", "gptq")
    }
    assert errors["gptq"] < 0.9 * errors["search"], errors


def test_the_checkpoint_says_how_it_was_made_and_is_read_back(
    tmp_path: Path, source: Path, given: Calibration
) -> None:
    quantize(source, tmp_path / "search", bits=4, method="search")
    quantize(source, tmp_path / "gptq", bits=4, method="gptq", calibration=given)
    plain, calibrated = config_values(tmp_path / "search"), config_values(tmp_path / "gptq")
    assert calibrated == plain | {"meta": {"head_bits": 8, "method": "gptq"}}
    stored = QuantizedCheckpoint(tmp_path / "gptq").config.quantization
    assert stored is not None
    assert stored.method == "gptq"
    assert contents(tmp_path / "search").keys() == contents(tmp_path / "gptq").keys()
    embedding, head = "model-00001-of-00004.safetensors", "model-00004-of-00004.safetensors"
    for name in (embedding, head, "quantized_head.safetensors"):
        assert contents(tmp_path / "search")[name] == contents(tmp_path / "gptq")[name]


def test_a_head_of_4_bits_is_calibrated_too(tmp_path: Path, source: Path, given: Calibration) -> None:
    quantize(source, tmp_path / "search", bits=4, head_bits=4, method="search")
    quantize(source, tmp_path / "gptq", bits=4, head_bits=4, method="gptq", calibration=given)
    heads = [QuantizedCheckpoint(tmp_path / name).linear("lm_head") for name in ("search", "gptq")]
    assert heads[1].bits == 4
    assert (heads[0].qweight != heads[1].qweight).any()
    folded = FloatCheckpoint.open(source).read("lm_head")
    assert np.abs(dequantize(heads[1]) - folded).max() < np.abs(folded).max() / 3


@pytest.mark.parametrize("method", ["scale", "gptq"])
def test_the_bytes_do_not_depend_on_the_workers(
    tmp_path: Path, source: Path, given: Calibration, method: Method
) -> None:
    quantize(source, tmp_path / "one", bits=4, method=method, calibration=given, workers=1)
    quantize(source, tmp_path / "three", bits=4, method=method, calibration=given, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_a_model_that_writes_its_own_text_gives_the_same_bytes_again(tmp_path: Path, source: Path) -> None:
    said: list[str] = []
    own = Calibration(tokens=320)
    quantize(source, tmp_path / "one", bits=4, method="gptq", calibration=own, notice=said.append)
    quantize(source, tmp_path / "two", bits=4, method="gptq", calibration=own, workers=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert said[0] == "the model writes 320 tokens to calibrate with (once)"
    assert said[-1] == "10 of 10 windows of calibration text written"


KILLED = """
import os, signal, sys
from pathlib import Path
from baichuan2_tpu.quantize import Calibration, quantize

def progress(event):
    if event.done == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

text = Calibration(Path(sys.argv[3]), 320)
model, target, method = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[5]
quantize(model, target, bits=4, method=method, calibration=text, progress=progress)
"""


@pytest.mark.parametrize("method", ["scale", "gptq"])
@pytest.mark.parametrize("done", [2, 3, 4])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, source: Path, given: Calibration, done: int, method: Method
) -> None:
    quantize(source, tmp_path / "whole", bits=4, method=method, calibration=given)
    words = [source, tmp_path / "q", given.file, done, method]
    child = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], check=False)
    assert child.returncode == -signal.SIGKILL
    events: list[QuantizeEvent] = []
    quantize(source, tmp_path / "q", bits=4, method=method, calibration=given, progress=events.append)
    assert events[0].done == done
    assert contents(tmp_path / "q") == contents(tmp_path / "whole")
    assert not (tmp_path / "q.partial").exists()


class Interruption(Exception):  # noqa: N818 - stands for Ctrl-C
    pass


def interrupt(*_: object, **__: object) -> Path:
    raise Interruption


def test_a_layer_whose_states_alone_were_written_is_done_again(
    tmp_path: Path, source: Path, given: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(source, tmp_path / "whole", bits=4, method="gptq", calibration=given)
    with monkeypatch.context() as patch:
        patch.setattr("baichuan2_tpu.quantize.calibrated_run.write_shard", interrupt)
        with pytest.raises(Interruption):
            quantize(source, tmp_path / "q", bits=4, method="gptq", calibration=given)
    assert (tmp_path / "q.partial" / "states-00001.npy").exists()
    quantize(source, tmp_path / "q", bits=4, method="gptq", calibration=given)
    assert contents(tmp_path / "q") == contents(tmp_path / "whole")


def test_states_that_a_killed_run_no_longer_needed_do_not_stay(
    tmp_path: Path, source: Path, given: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(source, tmp_path / "whole", bits=4, method="gptq", calibration=given)
    add = Journal.add

    def add_and_stop(journal: Journal, file: Path) -> None:
        add(journal, file)
        if file.name == "model-00002-of-00004.safetensors":
            raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add_and_stop)
        with pytest.raises(Interruption):
            quantize(source, tmp_path / "q", bits=4, method="gptq", calibration=given)
    assert len(list((tmp_path / "q.partial").glob("states-*.npy"))) == 2
    quantize(source, tmp_path / "q", bits=4, method="gptq", calibration=given)
    assert contents(tmp_path / "q") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["text", "tokens", "method", "states"])
def test_another_text_or_method_or_damaged_states_start_over(
    tmp_path: Path, source: Path, given: Calibration, change: str
) -> None:
    def stop(event: QuantizeEvent) -> None:
        if event.done == 4:
            raise Interruption

    with pytest.raises(Interruption):
        quantize(source, tmp_path / "q", bits=4, method="gptq", calibration=given, progress=stop)
    wished = given
    if change == "text":
        (tmp_path / "other.txt").write_text(TEXT.upper(), encoding="utf-8")
        wished = replace(given, file=tmp_path / "other.txt")
    elif change == "tokens":
        wished = replace(given, tokens=352)
    elif change == "states":
        states = tmp_path / "q.partial" / "states-00001.npy"
        states.write_bytes(states.read_bytes()[:-1] + b"x")
    method: Method = "scale" if change == "method" else "gptq"
    events: list[QuantizeEvent] = []
    quantize(source, tmp_path / "q", bits=4, method=method, calibration=wished, progress=events.append)
    assert events[0].done == (4 if change == "states" else 0)
    quantize(source, tmp_path / "fresh", bits=4, method=method, calibration=wished)
    assert contents(tmp_path / "q") == contents(tmp_path / "fresh")


def refusal(source: Path, calibration: Calibration, kind: type[Exception] = RequestError) -> str:
    target = source.with_name("refused")
    with pytest.raises(kind) as caught:
        quantize(source, target, bits=4, method="gptq", calibration=calibration)
    assert not target.exists()
    assert not target.with_name("refused.partial").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "text.txt is empty; give a text to calibrate with"),
        (b" \n\t", "text.txt is empty; give a text to calibrate with"),
        (b"abc\xff\xfe", "text.txt is not UTF-8 at byte 3; convert it first"),
        (b"Paris", "tokens, 320 are needed; give a longer text, or fewer --calibration-tokens, 32 at least"),
    ],
)
def test_a_wrong_text_is_refused_before_any_work(
    source: Path, given: Calibration, content: bytes, complaint: str
) -> None:
    assert given.file is not None
    given.file.write_bytes(content)
    assert complaint in refusal(source, given)


def test_a_text_can_come_from_standard_input(
    source: Path, given: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = FloatCheckpoint.open(source)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    piped = open_windows(checkpoint, replace(given, file=Path("-")), "gptq")
    assert piped.describe() == open_windows(checkpoint, given, "gptq").describe()


def test_a_missing_text_and_too_few_tokens_are_refused(source: Path, given: Calibration) -> None:
    missing = refusal(source, Calibration(source / "no.txt", 320))
    assert "no.txt: No such file or directory; name a text file" in missing
    assert "calibration tokens is 31, allowed is 32 or more" in refusal(source, replace(given, tokens=31))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, given: Calibration) -> None:
    source = write_model(tmp_path / "other", replace(ROPE, vocabulary_size=40))
    assert "the model knows 0 to 63; fetch the tokenizer" in refusal(source, given, CheckpointError)


def test_inputs_beyond_all_numbers_are_told(tmp_path: Path, given: Calibration) -> None:
    tensors = official_tensors(ROPE, 0)
    tensors["model.layers.0.post_attention_layernorm.weight"] *= 3e4
    for part in ("gate", "up"):
        tensors[f"model.layers.0.mlp.{part}_proj.weight"] *= 1e5
    source = write_model(tmp_path / "huge")
    for file in source.glob("pytorch_model*"):
        file.unlink()
    write_bin(source / "pytorch_model.bin", tensors)
    message = refusal(source, given, CheckpointError)
    assert "are not finite on the calibration text; fetch the checkpoint again" in message


def test_windows_are_spread_over_the_whole_text(source: Path, given: Calibration) -> None:
    windows = open_windows(FloatCheckpoint.open(source), given, "gptq")
    assert windows.given is not None
    assert windows.given.shape == (10, 32)
    ids = open_tokenizer(source).encode(TEXT)
    np.testing.assert_array_equal(windows.given[0], ids[:32])
    np.testing.assert_array_equal(windows.given[-1], ids[-32:])
