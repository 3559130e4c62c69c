"""A server in memory for tests: the real scheduler and app on a stand-in for an engine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import Any

import uvicorn
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.server.app import ServerOptions, create_app
from baichuan2_tpu.server.scheduling.load import SchedulerSettings
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.service import ServedModel, Service
from baichuan2_tpu.server.transport.connection import Connection
from baichuan2_tpu.text.template import BaichuanTemplate
from doubles.fakes import ByteTokenizer, ScriptedEngine

__all__ = ["MODEL", "chat_body", "fake_model", "listening", "running_service", "scripted_engine", "served"]

MODEL = "tiny"
_USER_ID, _ASSISTANT_ID = 257, 258


def fake_model(engine: Engine) -> ServedModel:
    """Describe a model whose tokens are bytes, greedy where a request says nothing."""
    tokenizer = ByteTokenizer()
    settings = GenerationSettings(SamplingSettings(temperature=0), max_tokens=32)
    template = BaichuanTemplate(tokenizer, _USER_ID, _ASSISTANT_ID)
    return ServedModel(MODEL, engine.name, tokenizer, template, settings, engine.max_context, created_s=1)


def scripted_engine(*answers: str, max_context: int = 256) -> ScriptedEngine:
    """Return an engine that says these answers, each with an end token behind it, one after the other."""
    tokenizer = ByteTokenizer()
    engine = ScriptedEngine(tokenizer.vocabulary_size, max_context=max_context)
    for answer in answers:
        engine.enqueue_ids([*tokenizer.encode(answer), tokenizer.END_ID])
    return engine


@contextmanager
def running_service(
    engine: Engine, settings: SchedulerSettings | None = None, *, timeout_s: float | None = None
) -> Generator[Service, None, None]:
    """Serve an engine with a scheduler that runs."""
    model = fake_model(engine)
    with (
        Scheduler(engine, model.tokenizer, settings) as scheduler,
        closing(Service(model, scheduler, timeout_s=timeout_s)) as service,
    ):
        yield service


@contextmanager
def served(
    engine: Engine,
    options: ServerOptions | None = None,
    settings: SchedulerSettings | None = None,
    *,
    timeout_s: float | None = None,
) -> Generator[TestClient, None, None]:
    """Serve an engine to a client in memory; a fault of the server is a response, as in life."""
    with (
        running_service(engine, settings, timeout_s=timeout_s) as service,
        TestClient(create_app(service, options), raise_server_exceptions=False) as client,
    ):
        yield client


@contextmanager
def listening(app: ASGIApp) -> Generator[str, None, None]:
    """Serve an app from a thread, and yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, http=Connection, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def chat_body(text: str = "hi", /, **fields: Any) -> dict[str, Any]:
    """Return a chat of one message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
