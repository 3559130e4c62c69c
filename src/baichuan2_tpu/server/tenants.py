"""Whose a request is: the holder of one API key, under an id that does not reveal the key.

Requests of one tenant share kept beginnings of prompts; without keys everybody is one tenant.
Not here: the client of a request, who takes turns with others and may name itself
(``api.answer_settings``); checking keys (``transport.guards``, ``page.access``).
"""

from __future__ import annotations

import hmac
from contextvars import ContextVar
from typing import Literal

__all__ = ["ShareRule", "current_tenant", "tenant_of"]

ShareRule = Literal["key", "all"]
"""Who shares kept beginnings: the holders of one key, or everybody."""

current_tenant: ContextVar[str] = ContextVar("current_tenant", default="")
"""The tenant whose request the current task or thread works for."""


def tenant_of(key: str, share: ShareRule) -> str:
    """Return the tenant that the holders of a valid key are."""
    if share == "all":
        return ""
    return hmac.new(key.encode(), b"baichuan2-tpu tenant", "sha256").hexdigest()
