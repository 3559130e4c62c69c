"""Log lines for machines: ``key=value`` or JSON, one line per event.

No line holds what a client wrote or a model answered. Control characters in a value are escaped.
Not here: the line of an HTTP request (``transport.request_log``), where lines go (``cli.serve_run``).
Source of the form: logfmt, as read by Loki and others.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Literal

from baichuan2_tpu.generate.events import Event, Result

__all__ = ["LineFormatter", "LogForm", "log_answer", "log_event", "request_id", "request_path"]

LogForm = Literal["text", "json"]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The HTTP request that the current task or thread works for."""

request_path: ContextVar[str | None] = ContextVar("request_path", default=None)
"""The path of that request, cut to a length that a line can have."""

_log = logging.getLogger(__name__)

_BARE = re.compile(r"[A-Za-z0-9_./:@%+,-]+")


def log_event(logger: logging.Logger, event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log an event with its fields; those that are None are left out."""
    logger.log(level, event, extra={"fields": fields})


async def log_answer(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """Pass the events of an answer on, and log its token counts and speed at the end."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Result):
                stats = event.stats
                log_event(
                    _log,
                    "answer",
                    finish_reason=event.finish_reason,
                    prompt_tokens=stats.prompt_tokens,
                    reused_tokens=stats.reused_tokens,
                    generated_tokens=stats.generated_tokens,
                    first_token_s=_round(stats.first_token_s),
                    tok_per_s=_round(stats.tok_per_s),
                )
            yield event


class LineFormatter(logging.Formatter):
    """Writes a record as one line: time, level, event, the request it belongs to, and its fields."""

    def __init__(self, form: LogForm) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback is one of its fields."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "request": request_id.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        fields = {name: value for name, value in fields.items() if value is not None}
        if self._form == "json":
            return json.dumps(fields, default=str)
        return " ".join(f"{name}={_quote(value)}" for name, value in fields.items())


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _quote(value: object) -> str:
    """Return a value as it is where that is unambiguous, else as a JSON string in ASCII."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)
