"""Whose a request is: the holder of one API key, under an id that does not reveal the key.

Requests of one tenant share kept beginnings of prompts; without keys everybody is one tenant. Stored
responses belong to the holder of the key alone, whoever shares beginnings.
Not here: the client of a request, who takes turns with others and may name itself
(``api.answer_settings``); checking keys (``transport.guards``, ``page.access``).
"""

from __future__ import annotations

import hmac
from contextvars import ContextVar
from typing import Literal

__all__ = ["ShareRule", "current_holder", "current_tenant", "holder_of", "tenant_of"]

ShareRule = Literal["key", "all"]
"""Who shares kept beginnings: the holders of one key, or everybody."""

current_tenant: ContextVar[str] = ContextVar("current_tenant", default="")
"""The tenant whose request the current task or thread works for."""


current_holder: ContextVar[str] = ContextVar("current_holder", default="")
"""The holder of the key that the current task or thread works for; empty where there are no keys."""


def tenant_of(key: str, share: ShareRule) -> str:
    """Return the tenant that the holders of a valid key are."""
    return "" if share == "all" else holder_of(key)


def holder_of(key: str) -> str:
    """Return the id of all who hold a key."""
    return hmac.new(key.encode(), b"baichuan2-tpu tenant", "sha256").hexdigest()
