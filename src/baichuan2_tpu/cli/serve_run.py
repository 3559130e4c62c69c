"""What ``baichuan2 serve`` does: keys, logs, a model, and a server around it until a signal comes.

Everything that can be wrong is checked before the model is loaded, the port included.
Not here: the options (``serve``), the API and the page (``baichuan2_tpu.server``).
"""

from __future__ import annotations

import logging
import os
from contextlib import closing
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING

from baichuan2_tpu.cli.models import find_model, open_model
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.memory import machine_memory_bytes, memory_need
from baichuan2_tpu.model import EngineSettings
from baichuan2_tpu.server.app import ServerOptions, create_app
from baichuan2_tpu.server.heap import limit_arenas
from baichuan2_tpu.server.log_lines import LineFormatter, LogForm, log_event
from baichuan2_tpu.server.scheduling.load import SchedulerSettings
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.service import RequestRules, ServedModel, Service
from baichuan2_tpu.server.transport.ending import Ending
from baichuan2_tpu.server.transport.listening import (
    Address,
    bind,
    check_tls,
    is_loopback,
    serve,
    tell_supervisor,
)
from baichuan2_tpu.server.transport.request_log import RequestLog
from baichuan2_tpu.server.transport.site_guard import SiteGuard, own_names

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from baichuan2_tpu.engine.base import Engine

__all__ = [
    "Address",
    "EngineSettings",
    "RequestRules",
    "ServePlan",
    "ServerOptions",
    "read_keys",
    "run_server",
    "write_logs",
]

_log = logging.getLogger(__name__)

_KEY_VARIABLE = "BAICHUAN2_API_KEY"
_MEMORY_SHARE = 0.5
"""Share of the machine's memory that weights and KV cache may take by default."""


@dataclass(frozen=True, slots=True)
class ServePlan:
    """What to serve, to whom, and with how much; ``name`` is the model's for clients."""

    model: str
    name: str
    engine: EngineSettings
    address: Address
    access: ServerOptions
    rules: RequestRules
    max_running: int | None
    """None for as many as the engine computes well in one step."""
    max_waiting: int
    kv_bytes: int | None
    timeout_s: float | None
    grace_s: float
    has_page: bool

    def scheduling(self, engine: Engine) -> SchedulerSettings:
        """Return the scheduler's settings, with a bound of memory in any case."""
        kv_bytes = self.kv_bytes
        if kv_bytes is None and engine.row_use is None:
            kv_bytes = kv_bound(engine, machine_memory_bytes())
        return SchedulerSettings(self.max_running or engine.answers_per_step, self.max_waiting, kv_bytes)


def read_keys(file: Path | None) -> frozenset[str]:
    """Return the keys from a file and the environment; without any, everybody may use the server.

    Raises: RequestError when the file or the variable holds no key.
    """
    keys: set[str] = set()
    if file is not None:
        try:
            keys.update(line.strip() for line in file.read_text("utf-8-sig").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read keys from {file}: {error}; give a text file") from error
        keys.discard("")
        if not keys:
            raise RequestError(f"{file} holds no key; write one per line")
    if _KEY_VARIABLE in os.environ:
        key = os.environ[_KEY_VARIABLE].strip()
        if not key:
            raise RequestError(f"{_KEY_VARIABLE} is empty; set it to a key, or unset it")
        keys.add(key)
    return frozenset(keys)


def write_logs(form: LogForm, *, is_debug: bool) -> None:
    """Write log lines to standard error: this package's from info on, warnings of others."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(form))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("baichuan2_tpu").setLevel(logging.DEBUG if is_debug else logging.INFO)


def kv_bound(engine: Engine, machine_bytes: int) -> int:
    """Return the bytes that the KV cache may take besides the weights; at least one full context."""
    context_bytes = engine.max_context * engine.kv_bytes_per_token
    free_bytes = int(machine_bytes * _MEMORY_SHARE) - memory_need(engine.config).weight_bytes
    return max(context_bytes, min(free_bytes, engine.max_sequences * context_bytes))


def run_server(plan: ServePlan) -> None:
    """Serve until SIGINT or SIGTERM; see ``server.transport.listening``.

    Raises: what is wrong with the port, the certificate, the model or a limit, before anything is served.
    """
    check_tls(plan.address)
    limit_arenas()
    with Ending(plan.grace_s) as ending, closing(bind(plan.address)) as listener:
        files = find_model(plan.model)
        files.require_template()
        with open_model(files, plan.engine) as model:
            served = ServedModel.of(model, plan.name)
            settings = plan.scheduling(model.engine)
            with Scheduler(model.engine, model.tokenizer, settings) as scheduler:
                _log_limits(plan, settings, model.engine, scheduler)
                service = Service(served, scheduler, timeout_s=plan.timeout_s, rules=plan.rules)
                _listen(plan, service, listener, ending)
    log_event(_log, "stopped")


def _listen(plan: ServePlan, service: Service, listener: socket.socket, ending: Ending) -> None:
    access = plan.access
    app = create_app(service, access)
    if plan.has_page:
        # Gradio takes seconds and 100 MB, which --no-page saves.
        from baichuan2_tpu.server.page.gradio_app import add_page

        add_page(app, service, access)

    def when_ready() -> None:
        url = plan.address.url(listener)
        log_event(_log, "ready", model=plan.name, engine=service.model.engine_name, url=url)
        tell_supervisor("READY=1")
        # Beside the first answers: it takes a second or two, which the first JSON answer would wait for.
        Thread(target=service.warm_up, name="warm-up").start()

    names = own_names(plan.address.host) | set(access.allowed_hosts)
    guarded = SiteGuard(app, names, access.cors_origins)
    serve(RequestLog(guarded), service, plan.address, listener, ending=ending, when_ready=when_ready)


def _log_limits(plan: ServePlan, settings: SchedulerSettings, engine: Engine, scheduler: Scheduler) -> None:
    """Log how much memory the server may take, and warn if anybody may use it."""
    load = scheduler.load()
    log_event(
        _log,
        "bounds",
        weights_gb=round(memory_need(engine.config).weight_bytes / 1e9, 2),
        kv_gb=round(load.max_held_tokens * load.kv_bytes_per_token / 1e9, 2),
        kv_tokens=load.max_held_tokens,
        context=engine.max_context,
        running=settings.max_running,
        waiting=settings.max_waiting,
    )
    if not plan.access.api_keys and not is_loopback(plan.address.host):
        log_event(
            _log,
            "anyone who reaches this address can use the model; give keys with --api-key-file",
            level=logging.WARNING,
            host=plan.address.host,
        )
