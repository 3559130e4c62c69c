"""A client that goes away takes its answer with it, before the next token."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Semaphore
from time import sleep

import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.service import Service
from doubles.fakes import ByteTokenizer, HistoryEngine
from running.served import MODEL, fake_model, listening

_LONGEST = 2000
"""Tokens an answer would have if nobody left."""


class GatedEngine(HistoryEngine):
    """Goes one step for each time its gate is released."""

    def __init__(self) -> None:
        tokenizer = ByteTokenizer()
        super().__init__(tokenizer.vocabulary_size, max_context=_LONGEST + 100)
        self.gate = Semaphore(0)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        row = super().logits(ids)
        row[ByteTokenizer.END_ID :] = -np.inf  # nothing ends the answer but the client
        return row

    def forward(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        self.gate.acquire()
        return super().forward(chunks)


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
    engine = GatedEngine()
    model = fake_model(engine)
    with (
        Scheduler(engine, model.tokenizer) as scheduler,
        closing(Service(model, scheduler)) as service,
        listening(create_app(service)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield Gated(engine, scheduler, client)


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_ends_when_its_client_stops_waiting(gated: Gated, is_stream: bool) -> None:
    with pytest.raises(openai.APITimeoutError):
        gated.client.completions.create(
            model=MODEL, prompt="a", max_tokens=_LONGEST, stream=is_stream, timeout=0.5
        )
    gated.run_until_cancelled()


def test_an_answer_ends_when_its_stream_is_closed(gated: Gated) -> None:
    gated.engine.gate.release(20)
    stream = gated.client.completions.create(model=MODEL, prompt="a", max_tokens=_LONGEST, stream=True)
    next(iter(stream))
    stream.close()
    gated.run_until_cancelled()
