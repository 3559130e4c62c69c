"""What is served: a model's name and text side, in front of the scheduler that answers.

Not here: HTTP routes and what a client may ask for (``server.api``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

from baichuan2_tpu import __version__
from baichuan2_tpu.errors import ContextLengthError, ShutdownError
from baichuan2_tpu.generate.grammar.grammars import Grammars
from baichuan2_tpu.generate.grammar.trial import TrialLimits
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.model import Model
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.log_lines import log_answer, log_event, request_path
from baichuan2_tpu.server.metrics import Metrics
from baichuan2_tpu.server.readiness import Readiness
from baichuan2_tpu.server.scheduling.answers import Answers
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.scheduling.ticket import Request
from baichuan2_tpu.text.template import ChatTemplate
from baichuan2_tpu.text.tokenizer import Tokenizer, fewest_tokens

__all__ = ["RequestRules", "ServedModel", "Service", "ToolRule"]

_log = logging.getLogger(__name__)

ToolRule = Literal["off", "fit", "all"]


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What is made of requests that ask for more than is served.

    ``is_strict`` refuses fields that would be ignored, ``is_any_model`` answers for every name, ``tools`` are
    all offered to the model, none of them, or the newest that fit.
    """

    is_strict: bool = False
    is_any_model: bool = False
    tools: ToolRule = "all"


_FAR_TOO_LONG = 4
"""Times the context: a text of so many of Baichuan2's longest tokens, 0.5 MB, takes 2 s to encode."""
_SAMPLED = 16
"""Characters per token of the context that are encoded to see that a longer text cannot fit."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model under the name that clients ask for; ``settings`` are the defaults of a request."""

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
        """The version and engine that compute the answers."""
        return f"baichuan2-tpu-{__version__}-{self.engine_name}"


class Service:
    """A model and its scheduler, which the caller starts and closes.

    Units: ``timeout_s`` is the most a request may take from its arrival to the end of its answer.
    """

    def __init__(
        self,
        model: ServedModel,
        scheduler: Scheduler,
        *,
        timeout_s: float | None = None,
        rules: RequestRules | None = None,
    ) -> None:
        self.model = model
        self.rules = rules or RequestRules()
        self.timeout_s = timeout_s
        self.max_answers = scheduler.max_jobs
        self.metrics = Metrics(scheduler.load)
        self._scheduler = scheduler
        self._is_stopping = False
        self._grammars: Grammars | None = None
        self._grammars_lock = Lock()
        self.readiness = Readiness(
            {
                "tokenizer": lambda: model.tokenizer.decode(model.tokenizer.encode("ready")),
                "compiler of schemas": self._prove_schemas,
                "engine": scheduler.prove,
            }
        )

    @property
    def grammars(self) -> Grammars:
        """The model's compiler of grammars, built when it is first needed; from any thread."""
        with self._grammars_lock:
            if self._is_stopping:
                raise ShutdownError("the server is shutting down; try another server")
            self._grammars = self._grammars or Grammars(self.model.tokenizer, TrialLimits())
            return self._grammars

    def warm_up(self) -> None:
        """Build the compiler of grammars, which takes seconds, before a request needs it."""
        with suppress(ShutdownError):  # it is asked for in the background, and the server may end at once
            self.grammars.warm_up()

    @property
    def health(self) -> Literal["ok", "faulty", "stopping"]:
        """Whether the server can answer: not while it shuts down, nor while a part of it fails or hangs.

        ``readiness.begin`` has the parts tried.
        """
        if self._is_stopping:
            return "stopping"
        is_faulty = self._scheduler.load().is_faulty or self.readiness.broken_part is not None
        return "faulty" if is_faulty else "ok"

    def _prove_schemas(self) -> None:
        """Compile a small grammar, unless none was ever needed."""
        if self._grammars is not None:
            self._grammars.prove()

    def check_model(self, name: str | None) -> None:
        """Check that a client asks for the model that is served; none or an empty name stands for any.

        Upper case does not matter, nor the tag that Ollama's clients add.

        Raises: ApiError with status 404.
        """
        if not name or self.rules.is_any_model:
            return
        if name.lower().removesuffix(":latest") != self.model.name.lower().removesuffix(":latest"):
            raise ApiError(
                f"the model {quote(name)} is not served here; ask for {self.model.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def check_length(self, texts: Iterable[str]) -> None:
        """Check that a prompt of these texts is not far too long, by their characters and beginnings.

        One that is a little too long is encoded, so that its error can say what takes how much of it.
        Raises: ContextLengthError before many seconds are spent on tokens that cannot fit.
        """
        texts = list(texts)
        max_context = self.model.max_context
        fewest = sum(fewest_tokens(self.model.tokenizer, text) for text in texts)
        if fewest > _FAR_TOO_LONG * max_context:
            raise self._too_long(fewest)
        sample = max_context * _SAMPLED
        if sum(map(len, texts)) <= sample:
            return
        tokens = 0
        for text in texts:
            tokens += len(self.model.tokenizer.encode(text[:sample]))
            sample -= min(sample, len(text))
        if tokens > 2 * max_context:  # the cut may have added a few
            raise self._too_long(tokens)

    def _too_long(self, fewest: int) -> ContextLengthError:
        return ContextLengthError(
            f"the prompt has {fewest} tokens at least, {self.model.max_context} are allowed; "
            "send a shorter one, or serve with a larger --context"
        )

    def submit(self, requests: Sequence[Request]) -> Answers:
        """Queue all requests, or none, and log that they were taken; from any thread.

        Raises: what ``Scheduler.submit`` raises.
        """
        tickets = self._scheduler.submit(requests)
        _log_start(requests)
        return Answers(tickets, lambda events: log_answer(self.metrics.observe(events)))

    def stop(self, grace_s: float) -> None:
        """Refuse new requests and let those in work finish for ``grace_s``. See ``Scheduler.close``."""
        self._is_stopping = True
        if self._grammars is not None:  # without the lock: one that is being built is closed below
            self._grammars.close()
        self._scheduler.close(grace_s)
        self.close()

    def close(self) -> None:
        """End the child process that compiles grammars; closing twice is allowed."""
        with self._grammars_lock:
            if self._grammars is not None:
                self._grammars.close()


def _log_start(requests: Sequence[Request]) -> None:
    prompts = {request.prompt_ids for request in requests}
    log_event(
        _log,
        "start",
        path=request_path.get(),
        prompt_tokens=sum(map(len, prompts)),
        answers=len(requests),
    )
