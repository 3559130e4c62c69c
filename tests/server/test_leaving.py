"""A client that goes away takes its answer with it, before the next token."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from time import sleep

import openai
import pytest

from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.service import Service
from doubles.gated_engine import GatedEngine
from running.served import MODEL, fake_model, listening

_LONGEST = 2000
"""Tokens an answer would have if nobody left."""


@dataclass(frozen=True)
class Gated:
    engine: GatedEngine
    scheduler: Scheduler
    client: openai.OpenAI

    def run_until_cancelled(self) -> None:
        """Let the engine go on, step by step, until an answer was cancelled."""
        for _ in range(_LONGEST):
            if self.scheduler.load().totals.cancelled:
                return
            self.engine.gate.release()
            sleep(0.01)  # the server hears of it through a socket
        pytest.fail("the answer went on to its end")


@pytest.fixture
def gated() -> Iterator[Gated]:
    engine = GatedEngine(_LONGEST + 100)
    model = fake_model(engine)
    with (
        Scheduler(engine, model.tokenizer) as scheduler,
        closing(Service(model, scheduler)) as service,
        listening(create_app(service)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield Gated(engine, scheduler, client)


def test_an_answer_ends_when_its_client_stops_waiting(gated: Gated) -> None:
    with pytest.raises(openai.APITimeoutError):
        gated.client.completions.create(model=MODEL, prompt="a", max_tokens=_LONGEST, timeout=0.5)
    gated.run_until_cancelled()


def test_an_answer_ends_when_its_stream_is_closed_before_the_first_token(gated: Gated) -> None:
    gated.client.completions.create(model=MODEL, prompt="a", max_tokens=_LONGEST, stream=True).close()
    gated.run_until_cancelled()


def test_an_answer_ends_when_its_stream_is_closed(gated: Gated) -> None:
    gated.engine.gate.release(20)
    stream = gated.client.completions.create(model=MODEL, prompt="a", max_tokens=_LONGEST, stream=True)
    next(iter(stream))
    stream.close()
    gated.run_until_cancelled()
