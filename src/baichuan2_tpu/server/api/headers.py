"""The headers of a response that say what was not done of a request.

Not here: which fields are ignored (``fields``), which tools are left out (``chat_input``).
"""

from __future__ import annotations

from collections.abc import Sequence

from baichuan2_tpu.server.api.schema_chat import ChatRequest

__all__ = ["ignored_header", "left_out_header"]

_MAX_NAMES = 20


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """Return the header that names the fields that are ignored; none when there are none."""
    more = ["..."] if len(names) > _MAX_NAMES else []
    return {"x-ignored-fields": ", ".join([*names[:_MAX_NAMES], *more])} if names else {}


def left_out_header(asked: ChatRequest, fitted: ChatRequest) -> dict[str, str]:
    """Return the header that says how many tools the model is not told of; none when it is told of all."""
    offered = len(asked.tools or ())
    left_out = offered - len(fitted.tools or ())
    return {"x-tools-left-out": f"{left_out} of {offered}"} if left_out else {}
