"""A grammar that would end, hang or fill this process is refused, and the next one is compiled."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from baichuan2_tpu.errors import CallerLeft, QueueFull, RequestError, ShutdownError, TooCostly
from baichuan2_tpu.generate.caller import Caller
from baichuan2_tpu.generate.grammar.grammars import Grammars, json_rule
from baichuan2_tpu.generate.grammar.trial import GrammarTrial, TrialLimits
from doubles.fakes import ByteTokenizer

TOKENIZER = ByteTokenizer()
TOKENS = [TOKENIZER.token_bytes(token_id) for token_id in range(TOKENIZER.vocabulary_size)]
USUAL = f"start: {json_rule({'type': 'object', 'properties': {'a': {'type': 'integer'}}})}"
ENDLESS = f"start: {json_rule({'type': 'integer', 'multipleOf': 4999999})}"
HOURS = TrialLimits(quick_s=3600, processor_s=3600, memory_bytes=4 << 30, waiting=8)
"""Limits that an endless grammar does not reach in a test."""


def trial_with(limits: TrialLimits) -> GrammarTrial:
    return GrammarTrial([*TOKENS, b"<end>"], [], len(TOKENS), limits)


@pytest.fixture
def trial() -> Iterator[GrammarTrial]:
    with trial_with(TrialLimits(processor_s=1)) as trial:
        trial.check(USUAL)
        yield trial


def child_of(trial: GrammarTrial) -> subprocess.Popen[bytes]:
    child = trial._process._child
    assert child is not None
    return child


def forks_of(child: subprocess.Popen[bytes]) -> list[str]:
    """Return the processes in which a child compiles."""
    return Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text("ascii").split()


def wait_until(see: Callable[[], object]) -> None:
    """Look until something is so; the test's time is its bound."""
    while not see():
        time.sleep(0.001)


def test_a_usual_grammar_passes_and_its_child_stays(trial: GrammarTrial) -> None:
    child = child_of(trial)
    for _ in range(3):
        trial.check(USUAL)
    assert child_of(trial) is child
    assert child.poll() is None


def test_what_the_library_refuses_is_refused_by_its_name(trial: GrammarTrial) -> None:
    child = child_of(trial)
    with pytest.raises(RequestError, match='Unimplemented keys: \\["contains"\\]'):
        trial.check(f"start: {json_rule({'type': 'object', 'contains': 3})}")
    assert child_of(trial) is child


def test_a_grammar_without_end_is_refused_and_the_next_is_compiled(trial: GrammarTrial) -> None:
    # {"type": "integer", "multipleOf": 4999999} compiled without end and took gigabytes.
    with pytest.raises(TooCostly, match=r"more than 1 s of processor time .* cause is X; make it"):
        trial.check(ENDLESS, "X")
    trial.check(USUAL)


def test_a_grammar_of_great_memory_is_refused() -> None:
    limits = TrialLimits(quick_s=60, memory_bytes=32 << 20)
    with trial_with(limits) as trial:
        with pytest.raises(TooCostly, match="more than 32 MB of memory to compile; make it simpler"):
            trial.check(ENDLESS)
        trial.check(USUAL)


def test_a_child_that_died_between_two_grammars_is_replaced(trial: GrammarTrial) -> None:
    child = child_of(trial)
    os.kill(child.pid, signal.SIGSEGV)
    child.wait()
    trial.check(USUAL)
    assert child_of(trial) is not child


def test_a_grammar_that_ends_its_fork_leaves_the_child(trial: GrammarTrial) -> None:
    child = child_of(trial)
    deep: object = {"type": "integer"}
    for _ in range(20_000):
        deep = f'{{"allOf":[{deep if isinstance(deep, str) else json.dumps(deep)}]}}'
    with pytest.raises(RequestError):
        trial.check(f"start: %json {deep}")
    trial.check(USUAL)
    assert child_of(trial) is child


def test_costly_grammars_do_not_keep_a_usual_one() -> None:
    # Each endless grammar had its full time before the next grammar was tried at all.
    limits = TrialLimits(quick_s=0.05, processor_s=3600, memory_bytes=4 << 30, waiting=32, costly_waiting=1)
    with trial_with(limits) as trial, ThreadPoolExecutor(12) as pool:
        endless = [pool.submit(trial.check, ENDLESS) for _ in range(12)]
        wait_until(lambda: sum(asking.done() for asking in endless) >= 10)
        trial.check(USUAL)
        assert sum(not asking.done() for asking in endless) == 2
        refused = [asking.exception() for asking in endless if asking.done()]
        trial.close()
    assert all(isinstance(error, QueueFull) and "costly schemas wait" in str(error) for error in refused)


def test_more_waiting_grammars_than_allowed_are_refused_at_once() -> None:
    limits = TrialLimits(quick_s=3600, memory_bytes=4 << 30, waiting=1)
    with trial_with(limits) as trial, ThreadPoolExecutor(2) as pool:
        endless = [pool.submit(trial.check, ENDLESS) for _ in range(2)]
        wait_until(lambda: trial._queues[0][0]._waiting and trial._queues[0][0]._is_taken)
        with pytest.raises(QueueFull, match="1 new schemas wait to be compiled already; try again in 1800 s"):
            trial.check(USUAL)
        trial.close()
        assert [type(asking.exception()) for asking in endless] == [ShutdownError] * 2


def compile_for(pool: ThreadPoolExecutor, trial: GrammarTrial, caller: Caller) -> Future[int]:
    return pool.submit(trial.check, ENDLESS, "", caller)


def test_a_trial_ends_with_its_caller_running_or_waiting() -> None:
    # The work went on after the client had left, and kept others from theirs.
    callers = [Caller() for _ in range(3)]
    with trial_with(HOURS) as trial, ThreadPoolExecutor(3) as pool:
        trial.check(USUAL)
        asking = [compile_for(pool, trial, caller) for caller in callers]
        wait_until(lambda: forks_of(child_of(trial)))
        for caller in reversed(callers):
            caller.leave()
        assert [type(each.exception()) for each in asking] == [CallerLeft] * 3
        wait_until(lambda: not forks_of(child_of(trial)))
        trial.check(USUAL)


def test_a_caller_that_left_before_asks_for_nothing(trial: GrammarTrial) -> None:
    caller = Caller()
    caller.leave()
    with pytest.raises(CallerLeft, match="the client left before its schema was compiled"):
        trial.check(USUAL, "", caller)


def test_clients_that_wait_take_turns() -> None:
    order: list[str] = []
    red = [Caller(client="red") for _ in range(4)]
    with trial_with(HOURS) as trial, ThreadPoolExecutor(6) as pool:

        def check(grammar: str, caller: Caller) -> None:
            try:
                trial.check(grammar, "", caller)
            finally:
                order.append(caller.client)

        waiting = trial._queues[0][0]._waiting
        asking = [pool.submit(check, ENDLESS, red[0])]
        wait_until(lambda: trial._queues[0][0]._is_taken)
        for index, caller in enumerate([*red[1:], Caller(client="blue")]):
            asking.append(pool.submit(check, USUAL, caller))
            wait_until(lambda: len(waiting) == index + 1)  # noqa: B023 - used at once
        red[0].leave()
        for each in asking:
            each.exception()
    assert order == ["red", "blue", "red", "red", "red"]


def test_all_grammars_of_a_request_have_one_bound(trial: GrammarTrial) -> None:
    # A request with 128 tools had the time of 128 schemas.
    caller = Caller(processor_s=0.15)
    with pytest.raises(TooCostly):
        trial.check(ENDLESS, "", caller)
    with pytest.raises(TooCostly, match="the grammars of the request take too long to compile"):
        trial.check(USUAL, "", caller)


def test_closing_ends_a_trial_that_runs() -> None:
    with trial_with(HOURS) as trial, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(trial.check, ENDLESS)
        wait_until(lambda: trial._process._child and forks_of(child_of(trial)))
        child = child_of(trial)
        trial.close()
        error = asking.exception()
        assert str(error) == "the server stops and compiles no more schemas; try another one"
        assert child.poll() == 0
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


def test_the_child_outlives_the_thread_that_started_it() -> None:
    """It died with the thread that warmed the server up, when it asked to die with its parent."""
    with trial_with(TrialLimits()) as trial:
        thread = threading.Thread(target=trial.check, args=(USUAL,))
        thread.start()
        thread.join()
        child = child_of(trial)
        trial.check(USUAL)
        assert child_of(trial) is child


def test_the_child_and_its_forks_end_with_its_parent() -> None:
    with trial_with(HOURS) as trial, ThreadPoolExecutor(1) as pool:
        pool.submit(trial.check, ENDLESS)
        wait_until(lambda: trial._process._child and forks_of(child_of(trial)))
        (fork,) = forks_of(child_of(trial))
        assert trial._process._control is not None
        trial._process._control.close()
        assert child_of(trial).wait(60) == 0
        wait_until(lambda: not Path(f"/proc/{fork}/exe").exists())
        trial.close()
