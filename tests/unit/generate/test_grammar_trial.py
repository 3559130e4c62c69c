"""A grammar that would end, hang or fill this process is refused, and the next one is compiled."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from baichuan2_tpu.errors import QueueFull, RequestError, ShutdownError
from baichuan2_tpu.generate.grammar import trial as trial_module
from baichuan2_tpu.generate.grammar.grammars import Grammars, json_rule
from baichuan2_tpu.generate.grammar.trial import GrammarTrial, TrialLimits
from doubles.fakes import ByteTokenizer

TOKENIZER = ByteTokenizer()
TOKENS = [TOKENIZER.token_bytes(token_id) for token_id in range(TOKENIZER.vocabulary_size)]
USUAL = f"start: {json_rule({'type': 'object', 'properties': {'a': {'type': 'integer'}}})}"
ENDLESS = f"start: {json_rule({'type': 'integer', 'multipleOf': 4999999})}"


@pytest.fixture
def trial() -> Iterator[GrammarTrial]:
    with GrammarTrial([*TOKENS, b"<end>"], [], len(TOKENS), TrialLimits(processor_s=1, waiting=1)) as trial:
        yield trial


def child_of(trial: GrammarTrial) -> subprocess.Popen[bytes]:
    trial.warm_up()
    assert trial._child is not None
    return trial._child


def test_a_usual_grammar_passes_and_its_child_stays(trial: GrammarTrial) -> None:
    child = child_of(trial)
    for _ in range(3):
        trial.check(USUAL)
    assert trial._child is child
    assert child.poll() is None


def test_what_the_library_refuses_is_refused_by_its_name(trial: GrammarTrial) -> None:
    child = child_of(trial)
    with pytest.raises(RequestError, match='Unimplemented keys: \\["contains"\\]'):
        trial.check(f"start: {json_rule({'type': 'object', 'contains': 3})}")
    assert trial._child is child


def test_a_grammar_without_end_is_refused_and_the_next_is_compiled(
    trial: GrammarTrial,
) -> None:
    # {"type": "integer", "multipleOf": 4999999} compiled without end and took gigabytes.
    with pytest.raises(RequestError, match=r"more than 1 s of processor time .* cause is X; make it"):
        trial.check(ENDLESS, "X")
    trial.check(USUAL)


def test_a_grammar_of_great_memory_is_refused() -> None:
    limits = TrialLimits(processor_s=60, memory_bytes=32 << 20)
    with GrammarTrial([*TOKENS, b"<end>"], [], len(TOKENS), limits) as trial:
        with pytest.raises(RequestError, match="more than 32 MB of memory to compile; make it simpler"):
            trial.check(ENDLESS)
        trial.check(USUAL)


def test_a_child_that_died_between_two_grammars_is_replaced(trial: GrammarTrial) -> None:
    child = child_of(trial)
    os.kill(child.pid, signal.SIGSEGV)
    child.wait()
    trial.check(USUAL)
    assert trial._child is not child


def test_a_child_that_has_grown_is_replaced(trial: GrammarTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "_GROWN_BYTES", -1)
    child = child_of(trial)
    trial.check(USUAL)
    assert child.poll() is not None
    trial.check(USUAL)


def test_more_waiting_grammars_than_allowed_are_put_off(trial: GrammarTrial) -> None:
    trial.warm_up()
    refused: list[Exception] = []

    def check() -> None:
        try:
            trial.check(ENDLESS)
        except (RequestError, QueueFull) as error:
            refused.append(error)

    threads = [threading.Thread(target=check) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kinds = [type(error) for error in refused]
    assert len(kinds) == 6
    assert QueueFull in kinds
    assert RequestError in kinds


def test_closing_ends_a_trial_that_runs(trial: GrammarTrial) -> None:
    child = child_of(trial)
    refused: list[str] = []

    def check() -> None:
        with pytest.raises(ShutdownError) as info:
            trial.check(ENDLESS)
        refused.append(str(info.value))

    thread = threading.Thread(target=check)
    thread.start()
    while not trial._turn.locked():
        time.sleep(0.001)
    trial.close()
    thread.join()
    assert child.poll() is not None
    assert refused == ["the server stops and compiles no more schemas; try another one"]
    with pytest.raises(ShutdownError, match="compiles no more schemas"):
        trial.check(USUAL)


def test_grammars_with_limits_are_tried_once_and_kept() -> None:
    grammars = Grammars(TOKENIZER, TrialLimits())
    try:
        grammars.warm_up()
        first = grammars.json_schema({"type": "integer"})
        assert grammars._trial is not None
        grammars._trial.close()  # a second trial would be refused
        assert grammars.json_schema({"type": "integer"}) is first
        with pytest.raises(ShutdownError, match="compiles no more schemas"):
            grammars.json_schema({"type": "boolean"})
    finally:
        grammars.close()


def test_only_so_many_grammars_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baichuan2_tpu.generate.grammar.grammars._CACHED", 2)
    grammars = Grammars(TOKENIZER)
    compiled = [grammars.json_schema({"const": number}) for number in range(3)]
    assert len(grammars._kept) == 2
    assert grammars.json_schema({"const": 2}) is compiled[2]
    assert grammars.json_schema({"const": 0}) is not compiled[0]


def test_the_child_outlives_the_thread_that_started_it(trial: GrammarTrial) -> None:
    """It died with the thread that warmed the server up, when it asked to die with its parent."""
    thread = threading.Thread(target=trial.warm_up)
    thread.start()
    thread.join()
    child = trial._child
    trial.check(USUAL)
    assert child is not None
    assert trial._child is child


def test_the_child_ends_with_its_pipe(trial: GrammarTrial) -> None:
    child = child_of(trial)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(60) == 0
