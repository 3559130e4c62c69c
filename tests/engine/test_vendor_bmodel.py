"""The vendor's own form of bmodel, made through the vendor's own route, run on the simulator."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu import cli
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.engine.base import Chunk, Engine
from baichuan2_tpu.engine.registry import open_engine
from baichuan2_tpu.errors import ArtifactError, ContextLengthError, RequestError
from baichuan2_tpu.generate.loop import Result, generate
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.toolchain import Toolchain, find_simulator
from doubles.sail_double import install_sail
from models.reference import reference_logits
from models.tiny_checkpoint import rope_config, write_config
from models.tiny_tokenizer import write_sentencepiece
from models.vendor_bmodel import (
    VENDOR_CONFIG,
    RouteMissingError,
    build_vendor_bmodels,
    find_route,
    vendor_weights,
)

WEIGHTS = vendor_weights()

# With these tokens the best logit is ahead of the second by 0.13 at every step below, of a deviation of 3.
RANDOM = np.random.default_rng(11)
PROMPT: list[int] = RANDOM.integers(0, VENDOR_CONFIG.vocabulary_size, 14).tolist()
SECOND_PROMPT: list[int] = RANDOM.integers(0, VENDOR_CONFIG.vocabulary_size, 12).tolist()
GREEDY = GenerationSettings(sampling=SamplingSettings(temperature=0), max_tokens=12)


@pytest.fixture(scope="module")
def bmodels() -> Path:
    try:
        return build_vendor_bmodels(find_route())
    except RouteMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=["int8", "int4"])
def folder(bmodels: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user of the vendor's files has it, and the config.json of a model that is no 7B."""
    bits: str = request.param
    folder = tmp_path_factory.mktemp(bits)
    shutil.copy(bmodels / f"{bits}.bmodel", folder / f"baichuan2-tiny_{bits}_1dev.bmodel")
    write_config(folder, VENDOR_CONFIG)
    write_sentencepiece(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path, toolchain: Toolchain) -> Iterator[Engine]:
    with open_engine(identify(folder), engine="simulator") as opened:
        yield opened


def best_of_reference(tokens: Sequence[int]) -> int:
    return int(reference_logits(VENDOR_CONFIG, WEIGHTS, tokens, np.float16)[-1].argmax())


def expected_answer(tokens: list[int], count: int) -> list[int]:
    for _ in range(count):
        tokens = [*tokens, best_of_reference(tokens)]
    return tokens[-count:]


def greedy_answer(engine: Engine, chunk: Chunk, count: int) -> list[int]:
    """Feed a chunk and ``count - 1`` tokens of the answer to it."""
    answer: list[int] = []
    for _ in range(count):
        answer.append(int(engine.forward([chunk])[0][-1].argmax()))
        chunk = Chunk(chunk.sequence, answer[-1:])
    return answer


def test_an_answer_and_a_second_turn_are_the_reference_s_token_by_token(engine: Engine) -> None:
    with engine.open_sequence() as sequence:
        answer = greedy_answer(engine, Chunk(sequence, PROMPT), 20)
        assert answer == expected_answer(PROMPT, 20)
        sequence.truncate(30)
        held = [*PROMPT, *answer][:30]
        second = greedy_answer(engine, Chunk(sequence, SECOND_PROMPT), 15)
    assert second == expected_answer([*held, *SECOND_PROMPT], 15)


def test_a_prompt_fed_a_token_at_a_time_gives_the_same_token(engine: Engine) -> None:
    with engine.open_sequence() as sequence:
        rows = [engine.forward([Chunk(sequence, [token])])[0] for token in PROMPT]
    assert rows[-1].argmax() == best_of_reference(PROMPT)


def test_sail_gives_the_same_tokens(
    bmodels: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_sail(monkeypatch, find_simulator(), total_bytes=64 << 20)
    write_config(tmp_path, VENDOR_CONFIG)
    shutil.copy(bmodels / "int8.bmodel", tmp_path)
    with open_engine(identify(tmp_path), engine="sail") as engine, engine.open_sequence() as sequence:
        answer = greedy_answer(engine, Chunk(sequence, PROMPT), 4)
        second = greedy_answer(engine, Chunk(sequence, SECOND_PROMPT), 4)
    assert answer == expected_answer(PROMPT, 4)
    assert second == expected_answer([*PROMPT, *answer[:-1], *SECOND_PROMPT], 4)


def test_two_sequences_take_turns(engine: Engine) -> None:
    with engine.open_sequence() as one, engine.open_sequence() as other:
        engine.forward([Chunk(one, PROMPT[:9], 0), Chunk(other, SECOND_PROMPT[:7], 0)])
        first, second = engine.forward([Chunk(one, PROMPT[9:]), Chunk(other, SECOND_PROMPT[7:])])
    assert first[0].argmax() == best_of_reference(PROMPT)
    assert second[0].argmax() == best_of_reference(SECOND_PROMPT)


def test_a_row_knows_its_token_and_nothing_else(engine: Engine) -> None:
    assert engine.candidates == 1
    with engine.open_sequence() as sequence:
        rows = engine.forward([Chunk(sequence, PROMPT, 2)])[0]
    assert rows.shape == (2, VENDOR_CONFIG.vocabulary_size)
    assert [np.flatnonzero(np.isfinite(row)).tolist() for row in rows] == [
        [best_of_reference(PROMPT[:-1])],
        [best_of_reference(PROMPT)],
    ]


def test_the_whole_context_can_be_filled_and_no_more(engine: Engine) -> None:
    context = VENDOR_CONFIG.max_context
    assert engine.max_context == context
    tokens = (PROMPT * context)[:context]
    with engine.open_sequence() as sequence:
        row = engine.forward([Chunk(sequence, tokens[:-1])])[0]
        assert row.argmax() == best_of_reference(tokens[:-1])
        row = engine.forward([Chunk(sequence, tokens[-1:])])[0]
        assert row.argmax() == best_of_reference(tokens)
        with pytest.raises(ContextLengthError, match=f"{context + 1} tokens do not fit"):
            engine.forward([Chunk(sequence, [1])])


def test_sampling_is_refused(engine: Engine, folder: Path) -> None:
    settings = GenerationSettings(sampling=SamplingSettings(temperature=0.7))
    answer = generate(TrackedSequence(engine), open_tokenizer(folder), PROMPT, settings)
    with pytest.raises(RequestError, match="knows only the most likely token of each step: it cannot sample"):
        next(answer)


def test_generation_ends_with_the_tokens_of_the_reference(engine: Engine, folder: Path) -> None:
    *_, result = generate(TrackedSequence(engine), open_tokenizer(folder), PROMPT, GREEDY)
    assert isinstance(result, Result)
    assert list(result.token_ids) == expected_answer(PROMPT, GREEDY.max_tokens)


def test_nets_that_are_not_those_of_the_config_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"layers is 2, Baichuan2-7B has 32; put the config.json"):
        open_engine(identify(tmp_path), engine="simulator")
    write_config(tmp_path, rope_config(heads=4, kv_heads=4))
    with pytest.raises(ArtifactError, match=r"key-value heads is 2, config.json has 4"):
        open_engine(identify(tmp_path), engine="simulator")


def test_a_file_that_was_cut_short_is_refused(bmodels: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    whole = (bmodels / "int8.bmodel").read_bytes()
    (tmp_path / "cut.bmodel").write_bytes(whole[:-4096])
    with pytest.raises(ArtifactError, match=rf"cut.bmodel: has {len(whole) - 4096} bytes, .* copy the file"):
        open_engine(identify(tmp_path), engine="simulator")


def test_another_form_is_refused_by_the_nets_it_has(
    bmodels: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    shutil.copy(bmodels / "lm_head.bmodel", tmp_path)
    with pytest.raises(ArtifactError, match=r"no block_cache_0 among the nets \(lm_head\)"):
        open_engine(identify(tmp_path), engine="simulator")


def test_the_commands_show_answer_with_and_measure_it(
    folder: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["baichuan2", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    facts = json.loads(run("info", folder, "--json"))
    assert (facts["is_bundle"], facts["chip"], facts["layers"]) == (False, "bm1684x", 2)
    with_simulator = ["--engine", "simulator"]
    answer = run("generate", folder, "hello", "--max-tokens", 3, *with_simulator)
    assert answer == run("generate", folder, "hello", "--max-tokens", 3, *with_simulator)
    assert answer.strip()
    report = json.loads(run("bench", folder, "--decode", 2, *with_simulator).splitlines()[-1])
    assert (report["engine"], report["is_measure_of_speed"]) == ("bmrt-simulator", False)
    assert "bits" not in report
