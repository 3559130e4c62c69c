"""The paths that are served, what other paths mean, and what to say about those that mean nothing.

Not here: the routes themselves (``api.routes``), changing a request (``transport.paths``).
"""

from __future__ import annotations

import re

__all__ = ["PATHS", "api_path", "explain_path"]

PATHS = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/responses": "POST",
    "/v1/models": "GET",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/tokenizer_info": "GET",
    "/health": "GET",
    "/health/live": "GET",
    "/health/ready": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
}
"""What is served, and the method; below ``/v1/models`` there is a path for the model's name."""

STORED = {
    "/v1/responses/{response_id}": "GET or DELETE",
    "/v1/responses/{response_id}/input_items": "GET",
}
"""What is served of a stored response, and the methods."""

_MODELS = "/v1/models/"
_STORED = re.compile("/v1/responses/[^/]+(/input_items)?")
_SLASHES = re.compile("//+")
_MAX_PATH = 100  # characters of an unknown path that are quoted

_ELSEWHERE = {
    "embeddings": "this model writes text and has no embeddings",
    "embed": "this model writes text and has no embeddings",
    "rerank": "this model writes text and cannot rank it",
    "messages": "Anthropic's interface is not served; use OpenAI's",
    "cancel": "nothing is computed in the background; close the connection to cancel an answer",
    "compact": "nothing is compacted; leave out what is oldest",
    "input_tokens": "use /tokenize to count tokens",
    "tags": "Ollama's interface is not served; use OpenAI's",
    "chat": "Ollama's interface is not served; use OpenAI's",
    "generate": "Ollama's interface is not served; use OpenAI's",
    "speech": "this model writes text and has no voice",
    "transcriptions": "this model reads text only",
    "generations": "this model writes text and draws nothing",
}
"""By the last part of a path: why it is not here."""


def api_path(path: str) -> str | None:
    """Return the path of the API that a path means; None for others, as those of the page."""
    single = _SLASHES.sub("/", path)
    if len(single) > 1 and not single.startswith(_MODELS):
        single = single.rstrip("/")
    for candidate in (single, f"/v1{single}", single.removeprefix("/v1")):
        if candidate in PATHS or _STORED.fullmatch(candidate):
            return candidate
        if candidate.startswith(_MODELS) and candidate != _MODELS:
            return candidate
    return None


def explain_path(path: str, method: str, status: int) -> str:
    """Return what to say about a path that is unknown (404), or known by another method (405)."""
    shown = path[:_MAX_PATH]
    if status == 405:
        stored = _STORED.fullmatch(path)
        allowed = PATHS.get(path, "GET or DELETE" if stored and not stored[1] else "GET")
        return f"{method} is not allowed for {shown}; use {allowed}"
    reason = _ELSEWHERE.get(path.rstrip("/").rpartition("/")[2])
    known = ", ".join(f"{allowed} {name}" for name, allowed in (PATHS | STORED).items())
    return f"there is no {shown} here{f': {reason}' if reason else ''}; there are {known}"
