"""Prompts that are scored beside answers that run get the scores they get alone."""

from dataclasses import replace

import pytest

from baichuan2_tpu.generate.answer import SCORED_ROWS
from baichuan2_tpu.generate.events import PromptScored
from baichuan2_tpu.generate.loop import generate
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.server.scheduling.load import SchedulerSettings
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.scheduling.ticket import Request, Ticket
from doubles.fakes import ByteTokenizer, HistoryEngine
from schedules.serving import finish, greedy, read, request, result_of, submit

TOKENIZER = ByteTokenizer()
VOCABULARY = TOKENIZER.vocabulary_size
SCORED = replace(greedy(4), prompt_logprobs=2)


def engine(max_sequences: int = 4, max_context: int = 256) -> HistoryEngine:
    return HistoryEngine(VOCABULARY, max_context=max_context, max_sequences=max_sequences)


def scores(ticket: Ticket) -> PromptScored:
    first, *others = read(ticket)
    assert isinstance(first, PromptScored)
    assert not any(isinstance(event, PromptScored) for event in others)
    return first


def scores_alone(single: Request) -> PromptScored:
    with TrackedSequence(engine()) as sequence:
        first = next(generate(sequence, TOKENIZER, single.prompt_ids, single.settings))
    assert isinstance(first, PromptScored)
    return first


@pytest.mark.parametrize("prompt_piece", [3, 50, 1000])
def test_prompts_are_scored_together_as_alone(prompt_piece: int) -> None:
    model = engine()
    model.prompt_piece = prompt_piece
    scheduler = Scheduler(model, TOKENIZER)
    requests = [request(range(count), settings=SCORED) for count in (1, 5, 200)]
    answering = submit(scheduler, request(b"hello", 30))
    scheduler.step()
    tickets = [submit(scheduler, single) for single in requests]
    finish(scheduler)
    assert [scores(ticket) for ticket in tickets] == [scores_alone(single) for single in requests]
    assert len(result_of(answering).token_ids) == 30


def test_a_step_takes_a_bounded_number_of_rows() -> None:
    model = engine()
    model.prompt_piece = 1000
    scheduler = Scheduler(model, TOKENIZER)
    for _ in range(3):
        submit(scheduler, request(range(200), settings=SCORED))
    while scheduler.step():
        assert sum(map(len, model.fed)) <= SCORED_ROWS + 3
        model.fed.clear()


def test_a_kept_prompt_is_fed_again_to_be_scored() -> None:
    scheduler = Scheduler(engine(), TOKENIZER)
    submit(scheduler, request(b"hello there"))
    finish(scheduler)
    single = request(b"hello there", settings=SCORED)
    ticket = submit(scheduler, single)
    finish(scheduler)
    assert scores(ticket) == scores_alone(single)


def test_a_preempted_prompt_is_scored_once() -> None:
    model = engine(max_context=128)
    model.prompt_piece = 20
    scheduler = Scheduler(model, TOKENIZER, SchedulerSettings(kv_bytes=128 * 4))
    older = submit(scheduler, request(range(60), 60))
    scheduler.step()
    single = request(range(60), settings=SCORED)
    ticket = submit(scheduler, single)
    finish(scheduler)
    assert scheduler.load().totals.preempted == 1
    assert (scores(ticket), len(result_of(older).token_ids)) == (scores_alone(single), 60)


def test_a_prompt_is_scored_without_an_answer() -> None:
    scheduler = Scheduler(engine(), TOKENIZER)
    ticket = submit(scheduler, request(b"hello", settings=replace(SCORED, max_tokens=0)))
    finish(scheduler)
    assert len(scores(ticket).tokens) == 5
