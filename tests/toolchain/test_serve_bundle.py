"""A compiled bundle on the simulator serves many chats at once: each as alone, in launches for all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager

import httpx
import pytest

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.model import load
from models.tiny_bundle import TINY_SETTINGS, TinyBundles
from running.served_bundle import ask, ask_together, count_launches, serve_engine

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


def serve(tiny_bundle: TinyBundles, engine: Engine) -> AbstractContextManager[str]:
    return serve_engine(engine, tiny_bundle(4).checkpoint)


def read_metrics(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return {name: float(value) for name, value in re.findall(r"^baichuan2_(\S+) (\S+)$", text, re.MULTILINE)}


def test_chats_at_once_get_the_words_of_each_alone_in_the_launches_of_the_longest(
    tiny_bundle: TinyBundles, engine: Engine, launches_per_step: int
) -> None:
    """Chats took turns, and each had launches of its own: two users got less than half the speed each."""
    before = count_launches(engine)
    with serve(tiny_bundle, engine) as url:
        alone = [ask(url, *chat) for chat in CHATS.items()]
    assert count_launches(engine) - before >= sum(CHATS.values()) * launches_per_step
    assert len(set(alone)) == len(CHATS)
    before = count_launches(engine)
    with serve(tiny_bundle, engine) as url:
        assert ask_together(url, CHATS) == alone
    # A prompt that comes while others are answered takes a step of its own at most.
    most_steps = max(CHATS.values()) + len(CHATS)
    assert count_launches(engine) - before <= most_steps * launches_per_step


def test_metrics_tell_the_rows_that_are_used_and_shared(tiny_bundle: TinyBundles, engine: Engine) -> None:
    with serve(tiny_bundle, engine) as url:
        empty = read_metrics(url)
        ask(url, "Say he", CHATS["Say he"])
        held = read_metrics(url)
    assert (empty["history_rows"], empty["history_rows_used"]) == (TINY_SETTINGS.rows, 0)
    # The last token of an answer is never fed.
    assert held["history_rows_used"] == held["prompt_tokens_total"] + CHATS["Say he"] - 1
    assert held["history_rows_shared"] == 0
