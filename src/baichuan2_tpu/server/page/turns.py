"""Answers for one open page: the turns of its conversations, which run at the same time.

A turn is one answer to a conversation as the browser sent it. The page is always sent every turn that runs or
ended lately: the browser may skip a state, and must not miss the end of a turn.
Not here: what the page looks like (``components``), where conversations are kept (page.js).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace

from pydantic import ConfigDict
from starlette.concurrency import run_in_threadpool

from baichuan2_tpu.chat import prompt_budget
from baichuan2_tpu.generate.events import Result
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.server.api.schema import Input, Many
from baichuan2_tpu.server.errors import describe
from baichuan2_tpu.server.scheduling.answers import Answers
from baichuan2_tpu.server.scheduling.ticket import Progress, Request
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.text.messages import Message, Role, check_order

__all__ = ["Asker", "PageSession", "Settings", "Turn", "TurnState", "answer_turn"]

_SHOW_EVERY_S = 0.08  # a browser renders a long answer from the start each time
_UNHEARD_S = 10  # a page listens as soon as it has sent a turn
_MAX_ENDED = 4  # turns still sent after their end


class _PageInput(Input):
    """What a browser sends; validation errors do not quote it."""

    model_config = ConfigDict(strict=False, hide_input_in_errors=True)


class PageMessage(_PageInput):
    """A message as the browser keeps it."""

    role: Role
    content: str


class Settings(_PageInput):
    """The settings of a page; see ``SamplingSettings``. Without ``max_tokens`` the model's own applies."""

    system: str
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_tokens: int | None
    seed: int | None

    def over(self, defaults: GenerationSettings) -> GenerationSettings:
        """Put them over the model's own.

        Raises: RequestError for a value that is not allowed.
        """
        return defaults.override(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            max_tokens=self.max_tokens,
        )


class Turn(_PageInput):
    """A conversation that waits for an answer, under an id that the browser chose."""

    id: str
    messages: Many[PageMessage]
    settings: Settings


@dataclass(frozen=True, slots=True)
class TurnState:
    """The progress of a turn: the answer so far and, once it is over, its statistics or its error.

    ``read_percent`` tells how much of its prompt was read, while it is. ``error_code`` is the kind of error,
    for which the page has words of its own.
    """

    text: str = ""
    read_percent: int | None = None
    dropped_rounds: int = 0
    is_over: bool = False
    error: str | None = None
    error_code: str | None = None
    finish_reason: str | None = None
    tokens: int = 0
    first_token_s: float | None = None
    tok_per_s: float | None = None

    def note_progress(self, progress: Progress | None) -> TurnState:
        """Return the state with how much of the prompt was read, the same one if that is known already."""
        percent = None
        if progress is not None and not progress.is_complete:
            percent = 100 * progress.read_tokens // progress.prompt_tokens
        return self if percent == self.read_percent else replace(self, read_percent=percent)

    def extend(self, text: str, result: Result | None) -> TurnState:
        """Return the state with more text, or the final state if there is a result."""
        if result is None:
            return replace(self, text=self.text + text)
        return replace(
            self,
            text=result.text,
            is_over=True,
            finish_reason=result.finish_reason,
            tokens=result.stats.generated_tokens,
            first_token_s=result.stats.first_token_s,
            tok_per_s=result.stats.tok_per_s,
        )


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose browser a turn comes from; see ``scheduling.ticket.Request``."""

    client: str = ""
    tenant: str = ""


@dataclass(slots=True)
class PageSession:
    """The turns of one open page."""

    running: dict[str, Answers] = field(default_factory=dict[str, Answers])
    states: dict[str, TurnState] = field(default_factory=dict[str, TurnState])

    def show(self, turn_id: str, state: TurnState) -> dict[str, dict[str, object]]:
        """Record the state of a turn and return the states of all turns for the page."""
        self.states[turn_id] = state
        ended_ids = [name for name, state in self.states.items() if state.is_over]
        for name in ended_ids[:-_MAX_ENDED]:
            del self.states[name]
        return {name: asdict(state) for name, state in self.states.items()}

    def stop(self, turn_id: str) -> None:
        """Stop a turn before its next token; no effect on one that is over."""
        if turn_id in self.running:
            self.running[turn_id].cancel()

    def stop_all(self) -> None:
        """Stop every turn: nobody looks at the page any more."""
        for answers in self.running.values():
            answers.cancel()


async def answer_turn(
    service: Service, session: PageSession, turn: Turn, asker: Asker, is_heard: Callable[[], bool]
) -> AsyncGenerator[Mapping[str, object], None]:
    """Answer a turn and yield the states for the page as they change; an error is a last state, too.

    An answer to which no page listens for some seconds is stopped before its next token.
    """
    state = TurnState()
    try:
        request, dropped_rounds = await run_in_threadpool(_request, service, turn, asker)
        state = TurnState(dropped_rounds=dropped_rounds)
        with service.submit([request]) as answers:
            session.running[turn.id] = answers
            async with aclosing(_watch_answer(answers, state, is_heard)) as states:
                async for state in states:
                    yield session.show(turn.id, state)
    except Exception as error:  # noqa: BLE001 - the boundary of requests: a fault is shown as an error
        fault = describe(error)
        ended = replace(state, is_over=True, error=fault.message, error_code=fault.code)
        yield session.show(turn.id, ended)
    finally:
        session.running.pop(turn.id, None)


async def _watch_answer(
    answers: Answers, state: TurnState, is_heard: Callable[[], bool]
) -> AsyncGenerator[TurnState, None]:
    """Yield the state at once and as it changes, but not more often than a browser can render."""

    async def read() -> None:
        nonlocal state
        async for piece in answers.pieces():
            state = state.extend(piece.text, piece.result)

    reading = asyncio.ensure_future(read())
    last = None
    heard_s = time.monotonic()
    try:
        while not reading.done() or last is not state:
            state = state.note_progress(answers.progress)
            if last is not state:
                last = state
                yield last
            await asyncio.wait((reading,), timeout=_SHOW_EVERY_S)
            if is_heard():
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > _UNHEARD_S:
                answers.cancel()
        reading.result()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _request(service: Service, turn: Turn, asker: Asker) -> tuple[Request, int]:
    """Return the request for a turn's answer and how many of the oldest rounds it leaves out.

    Raises: RequestError, ContextLengthError when it cannot be answered.
    """
    model = service.model
    settings = turn.settings.over(model.settings)
    settings = replace(settings, stop_ids=settings.stop_ids | model.template.stop_ids)
    system = [Message("system", turn.settings.system)] if turn.settings.system.strip() else []
    messages = [*system, *(Message(message.role, message.content) for message in turn.messages)]
    check_order(messages)
    prompt = model.template.render(messages, prompt_budget(model.max_context, settings.max_tokens))
    request = Request(prompt.ids, settings, service.timeout_s, asker.client, asker.tenant)
    return request, prompt.dropped_rounds
