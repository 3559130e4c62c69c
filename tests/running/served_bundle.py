"""A server on the engine of a bundle in this process, questions to it, and the launches that they take."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.model import load
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.service import ServedModel, Service
from running.served import listening

__all__ = ["ask", "ask_together", "count_launches", "serve_engine"]

_NAME = "served"


@contextmanager
def serve_engine(engine: Engine, checkpoint: Path) -> Iterator[str]:
    """Serve an engine anew, without conversations kept from before; the checkpoint has its tokenizer."""
    with load(checkpoint) as described, Scheduler(engine, described.tokenizer) as scheduler:
        service = Service(ServedModel.of(described, _NAME), scheduler)
        with listening(create_app(service)) as url:
            yield url
            service.stop(grace_s=0)


def ask(url: str, question: str, max_tokens: int) -> str:
    """Return the greedy answer to a question, which must have so many tokens."""
    body = {
        "model": _NAME,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=3600, trust_env=False)
    answer = response.json()
    assert response.status_code == 200, answer
    assert answer["usage"]["completion_tokens"] == max_tokens
    text = answer["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def ask_together(url: str, chats: dict[str, int]) -> list[str]:
    """Ask all at once: questions, and the tokens of their answers."""
    with ThreadPoolExecutor(len(chats)) as pool:
        return list(pool.map(lambda question: ask(url, question, chats[question]), chats))


def count_launches(engine: Engine) -> int:
    """Return the launches since the engine was opened."""
    assert engine.device_counts is not None
    return engine.device_counts.launches
