import asyncio
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from baichuan2_tpu.server.page import turns
from baichuan2_tpu.server.page.texts import TEXTS
from baichuan2_tpu.server.page.turns import Asker, PageSession, Settings, Turn, TurnState, answer_turn
from baichuan2_tpu.server.service import Service
from doubles.fakes import FakeEngine
from doubles.talking_engine import LONG_COUNT, TalkingEngine
from running.served import running_service

SETTINGS = Settings(
    system="",
    temperature=0,
    top_k=0,
    top_p=1,
    min_p=0,
    repetition_penalty=1,
    max_tokens=7000,
    seed=None,
)


def turn(*texts: str, turn_id: str = "a", **settings: object) -> Turn:
    """Return a conversation of these messages, the user's first."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    changed = SETTINGS.model_copy(update=settings)
    return Turn.model_validate({"id": turn_id, "messages": messages, "settings": changed.model_dump()})


def is_heard() -> bool:
    """Say that the page listens."""
    return True


async def show(service: Service, session: PageSession, question: Turn) -> list[Mapping[str, Any]]:
    """Answer a turn and return all that the page is shown."""
    return [
        dict(states) async for states in answer_turn(service, session, question, Asker("somebody"), is_heard)
    ]


def answer(engine: FakeEngine, question: Turn) -> dict[str, Any]:
    """Answer a turn and return its last state."""
    session = PageSession()
    with running_service(engine) as service:
        last = asyncio.run(show(service, session, question))[-1][question.id]
    assert last["is_over"]
    assert session.running == {}
    return last


def test_a_turn_ends_with_its_answer_and_its_figures() -> None:
    last = answer(TalkingEngine(), turn("hello"))
    assert last["text"] == "Hello! How can I help?"
    assert last["error"] is None
    assert last["finish_reason"] == "stop"
    assert last["tokens"] == len("Hello! How can I help?")
    assert last["first_token_s"] > 0
    assert last["tok_per_s"] > 0


def test_a_text_grows_and_never_shrinks() -> None:
    with running_service(TalkingEngine()) as service:
        states = asyncio.run(show(service, PageSession(), turn("count")))
    texts = [state["a"]["text"] for state in states]
    assert len(set(texts)) > 2
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


@pytest.mark.parametrize(
    ("question", "error"),
    [
        (turn("break"), "the device reported a fault; restart it"),
        (turn("hello", temperature=-1), "temperature is -1.0; 0 to 100 is allowed"),
        (turn("hello", max_tokens=0), "max_tokens is 0; 1 or more is allowed"),
        (turn(" "), "message 0 is empty; write a prompt"),
        (turn(), "there is no user message; write a prompt"),
    ],
)
def test_a_fault_is_an_error_and_no_text(question: Turn, error: str) -> None:
    last = answer(TalkingEngine(), question)
    assert last["error"] == error
    assert last["text"] == ""


def test_how_much_of_a_prompt_is_read_is_a_percentage() -> None:
    engine = TalkingEngine()
    engine.prompt_piece = 25
    engine.step_s = 0.3
    with running_service(engine) as service:
        states = [
            state["a"] for state in asyncio.run(show(service, PageSession(), turn("x" * 98, max_tokens=1)))
        ]
    percents = [state["read_percent"] for state in states if state["read_percent"] is not None]
    assert percents == sorted(percents)
    assert {25, 50, 75} <= set(percents)
    assert all(state["read_percent"] is None for state in states if state["text"])


@pytest.mark.parametrize("code", ["context_length_exceeded", "queue_full", "unavailable", "engine_failed"])
def test_an_error_that_readers_can_act_on_has_words_in_their_language(code: str) -> None:
    # They were told of --context, in English.
    for texts in TEXTS.values():
        assert "--" not in texts[f"error_{code}"]


def test_a_fault_has_its_code() -> None:
    assert answer(TalkingEngine(), turn("break"))["error_code"] == "engine_failed"
    assert answer(TalkingEngine(), turn("x" * 9000))["error_code"] == "context_length_exceeded"
    assert answer(TalkingEngine(), turn("hello", temperature=-1))["error_code"] is None


def test_settings_are_put_over_the_models_own() -> None:
    assert answer(TalkingEngine(), turn("hello", max_tokens=5))["text"] == "Hello"
    assert answer(TalkingEngine(), turn("hello", max_tokens=None))["text"] == "Hello! How can I help?"
    asked = "what is your system prompt?"
    assert answer(TalkingEngine(), turn(asked, system="Be brief."))["text"] == "Be brief."
    assert answer(TalkingEngine(), turn(asked, system=" "))["text"] == ""


def test_the_oldest_rounds_are_left_out_when_they_do_not_fit_and_that_is_told() -> None:
    last = answer(TalkingEngine(), turn("x" * 3000, "y" * 3000, "hello"))
    assert last["dropped_rounds"] == 1
    assert last["text"] == "Hello! How can I help?"


def test_turns_of_one_page_run_side_by_side_and_one_can_be_stopped() -> None:
    session = PageSession()

    async def two(service: Service) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        long = asyncio.create_task(show(service, session, turn("count on", turn_id="long")))
        while "long" not in session.states or not session.states["long"].text:
            await asyncio.sleep(0.01)
        short = await show(service, session, turn("hello", turn_id="short"))
        session.stop("long")
        session.stop("nothing that runs")
        return await long, short

    with running_service(TalkingEngine()) as service:
        long, short = asyncio.run(two(service))
    assert short[-1]["short"]["text"] == "Hello! How can I help?"
    assert not short[-1]["long"]["is_over"]
    assert long[-1]["long"]["finish_reason"] == "cancelled"
    assert LONG_COUNT.startswith(long[-1]["long"]["text"])
    assert long[-1]["short"]["is_over"], "the page may have skipped the end of the short one"


@pytest.mark.parametrize("way", ["the generator is closed", "the session ends"])
def test_nobody_waits_for_an_answer_that_nobody_reads(way: str) -> None:
    engine = TalkingEngine()

    async def leave(service: Service) -> None:
        session = PageSession()
        states = answer_turn(service, session, turn("count on"), Asker("somebody"), is_heard)
        await anext(states)
        if way == "the session ends":
            session.stop_all()
            assert [state async for state in states][-1]["a"]["finish_reason"] == "cancelled"  # pyright: ignore
        else:
            await states.aclose()
        assert session.running == {}

    with running_service(engine) as service:
        asyncio.run(leave(service))
    assert sum(map(len, engine.fed)) < len(LONG_COUNT)


def test_an_answer_ends_that_no_page_listens_to(monkeypatch: pytest.MonkeyPatch) -> None:
    # A client could ask and go, and the turn ran on to its last token.
    monkeypatch.setattr(turns, "_UNHEARD_S", 0.1)
    engine = TalkingEngine()

    async def ask(service: Service) -> list[Mapping[str, Any]]:
        states = answer_turn(service, PageSession(), turn("count on"), Asker("somebody"), lambda: False)
        return [dict(state) async for state in states]

    with running_service(engine) as service:
        assert asyncio.run(ask(service))[-1]["a"]["finish_reason"] == "cancelled"
    assert sum(map(len, engine.fed)) < len(LONG_COUNT)


def test_what_a_browser_sent_wrongly_is_not_repeated_in_a_log() -> None:
    with pytest.raises(ValidationError) as caught:
        Turn.model_validate({"id": "a", "messages": [{"role": "nobody", "content": ["a secret"]}]})
    assert "secret" not in str(caught.value)


def test_only_the_latest_ends_are_shown() -> None:
    session = PageSession()
    session.show("runs", TurnState())
    for number in range(5):
        session.show(str(number), TurnState(is_over=True))
    states = session.show("5", TurnState(is_over=True))
    assert list(states) == ["runs", "2", "3", "4", "5"]
