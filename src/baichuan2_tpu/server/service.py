"""What is served: a model's name and text side, in front of the scheduler that answers.

Not here: HTTP (``routes_*``), what a client may ask for (``schema*``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

from baichuan2_tpu import __version__
from baichuan2_tpu.generate.grammars import Grammars
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.model import Model
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.metrics import Metrics
from baichuan2_tpu.server.scheduling.answers import Answers
from baichuan2_tpu.server.scheduling.scheduler import Request, Scheduler
from baichuan2_tpu.server.transport.request_log import log_answer
from baichuan2_tpu.text.template import ChatTemplate
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["ServedModel", "Service"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model under the name that clients ask for; ``settings`` hold where a request says nothing."""

    name: str
    engine_name: str
    tokenizer: Tokenizer
    template: ChatTemplate
    settings: GenerationSettings
    max_context: int
    created_s: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, model: Model, name: str) -> ServedModel:
        """Describe an opened model to clients, under a name.

        Raises: CheckpointError for a model without a chat template.
        """
        template = model.files.require_template()
        return cls(name, model.engine.name, model.tokenizer, template, model.settings, model.max_context)

    @property
    def fingerprint(self) -> str:
        """What computes the answers: version and engine."""
        return f"baichuan2-tpu-{__version__}-{self.engine_name}"


class Service:
    """A model and its scheduler, which someone else starts and closes.

    Units: ``timeout_s`` is the most a request may take from its arrival to the end of its answer.
    """

    def __init__(self, model: ServedModel, scheduler: Scheduler, *, timeout_s: float | None = None) -> None:
        self.model = model
        self.timeout_s = timeout_s
        self.metrics = Metrics(scheduler.load)
        self._scheduler = scheduler
        self._is_stopping = False
        self._grammars: Grammars | None = None
        self._grammars_lock = Lock()

    @property
    def grammars(self) -> Grammars:
        """What compiles grammars for the model, built when it is first needed; from any thread."""
        with self._grammars_lock:
            self._grammars = self._grammars or Grammars(self.model.tokenizer)
            return self._grammars

    def warm_up(self) -> None:
        """Build what takes long before a request needs it."""
        self.grammars.json_schema({"type": "object"})

    @property
    def health(self) -> Literal["ok", "faulty", "stopping"]:
        """Whether answers can be had: not while the server stops, nor right after a fault of the engine."""
        if self._is_stopping:
            return "stopping"
        return "faulty" if self._scheduler.load().is_faulty else "ok"

    def check_model(self, name: str | None) -> None:
        """Check that a client means the model that is served; None means whichever it is.

        Raises: ApiError with status 404.
        """
        if name not in (None, self.model.name):
            raise ApiError(
                f"the model {name!r} is not served here; {self.model.name!r} is",
                status=404,
                param="model",
                code="model_not_found",
            )

    def submit(self, requests: Sequence[Request]) -> Answers:
        """Queue all requests, or none; from any thread.

        Raises: what ``Scheduler.submit`` raises.
        """
        tickets = self._scheduler.submit(requests)
        return Answers(tickets, lambda events: log_answer(self.metrics.observe(events)))

    def stop(self, grace_s: float) -> None:
        """Take no more requests, and give those that were taken some time to end. See ``Scheduler.close``."""
        self._is_stopping = True
        self._scheduler.close(grace_s)
