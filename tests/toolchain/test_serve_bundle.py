"""A compiled bundle on the simulator serves many chats at once: each as alone, in launches for all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.model import load
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.service import ServedModel, Service
from models.tiny_bundle import TINY_SETTINGS, TinyBundles
from running.served import listening

NAME = "tiny"
CHATS = {"Where is he": 8, "Who is rain": 7, "Say he": 6, "What is tea": 4}
"""Questions and the most tokens of their answers. In these answers the best two logits are always further
apart than 9 % of the spread; where rows lie changes 2 % at most (docs/engines.md) and exchanges none."""


@pytest.fixture(scope="module")
def engine(tiny_bundle: TinyBundles) -> Iterator[Engine]:
    with load(tiny_bundle(4).folder, engine="simulator") as model:
        yield model.engine


@pytest.fixture(scope="module")
def launches_per_step(engine: Engine) -> int:
    """The nets of all layers, and the head."""
    return -(-engine.config.layers // TINY_SETTINGS.layers_per_net) + 1


@contextmanager
def serve(tiny_bundle: TinyBundles, engine: Engine) -> Iterator[str]:
    """Serve the engine anew, without conversations kept from before."""
    with load(tiny_bundle(4).checkpoint) as described, Scheduler(engine, described.tokenizer) as scheduler:
        service = Service(ServedModel.of(described, NAME), scheduler)
        with listening(create_app(service)) as url:
            yield url
            service.stop(grace_s=0)


def ask(url: str, question: str) -> str:
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": CHATS[question],
    }
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300, trust_env=False)
    answer = response.json()
    assert response.status_code == 200, answer
    assert answer["usage"]["completion_tokens"] == CHATS[question]
    text = answer["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def count_launches(engine: Engine) -> int:
    assert engine.device_counts is not None
    return engine.device_counts.launches


def read_metrics(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return {name: float(value) for name, value in re.findall(r"^baichuan2_(\S+) (\S+)$", text, re.MULTILINE)}


def test_chats_at_once_get_the_words_of_each_alone_in_the_launches_of_the_longest(
    tiny_bundle: TinyBundles, engine: Engine, launches_per_step: int
) -> None:
    """Chats took turns, and each had launches of its own: two users got less than half the speed each."""
    before = count_launches(engine)
    with serve(tiny_bundle, engine) as url:
        alone = [ask(url, question) for question in CHATS]
    assert count_launches(engine) - before >= sum(CHATS.values()) * launches_per_step
    assert len(set(alone)) == len(CHATS)
    before = count_launches(engine)
    with serve(tiny_bundle, engine) as url, ThreadPoolExecutor(len(CHATS)) as pool:
        together = list(pool.map(lambda question: ask(url, question), CHATS))
    assert together == alone
    # A prompt that comes while others are answered takes a step of its own at most.
    most_steps = max(CHATS.values()) + len(CHATS)
    assert count_launches(engine) - before <= most_steps * launches_per_step


def test_metrics_tell_the_rows_that_are_used_and_shared(tiny_bundle: TinyBundles, engine: Engine) -> None:
    with serve(tiny_bundle, engine) as url:
        empty = read_metrics(url)
        ask(url, "Say he")
        held = read_metrics(url)
    assert (empty["history_rows"], empty["history_rows_used"]) == (TINY_SETTINGS.rows, 0)
    # The last token of an answer is never fed.
    assert held["history_rows_used"] == held["prompt_tokens_total"] + CHATS["Say he"] - 1
    assert held["history_rows_shared"] == 0
