"""A server of the talking engine on a free port, page and API, in threads of this process."""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import replace
from threading import Thread
from types import TracebackType

import uvicorn
from typing_extensions import Self

from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.server.app import ServerOptions, create_app
from baichuan2_tpu.server.page.gradio_app import add_page
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.service import Service
from doubles.talking_engine import TalkingEngine
from running.served import fake_model

__all__ = ["LivePage"]


class LivePage:
    """Serves from ``with`` to its end; ``max_tokens`` of an answer are the model's own setting.

    Units: a step of the engine takes ``step_s``.
    """

    def __init__(
        self, *, keys: Collection[str] = (), max_tokens: int = 7000, step_s: float | None = None
    ) -> None:
        engine = TalkingEngine()
        engine.step_s = step_s or engine.step_s
        settings = GenerationSettings(SamplingSettings(temperature=0), max_tokens)
        model = replace(fake_model(engine), settings=settings)
        self.scheduler = Scheduler(engine, model.tokenizer)
        self._service = service = Service(model, self.scheduler)
        options = ServerOptions(frozenset(keys))
        app = create_app(service, options)
        add_page(app, service, options)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        self._thread = Thread(target=self._server.run, args=([self._socket],))

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/"

    def stop(self) -> None:
        """End all answers and close the port."""
        self.scheduler.close()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        self._service.close()

    def __enter__(self) -> Self:
        self.scheduler.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
