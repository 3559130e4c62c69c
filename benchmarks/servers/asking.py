"""Ask a server with OpenAI's API for completions, and note when the pieces arrive.

Not here: which questions, and what the times mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

import httpx

__all__ = ["Answer", "AnswerError", "ask", "ask_stream", "new_client"]

_LIMIT_S = 600
"""The longest any answer may take; a server that hangs ends the benchmark."""


class AnswerError(Exception):
    """A server answered with an error, or an answer is incomplete."""


@dataclass(slots=True)
class Answer:
    """What came back. Units: ``arrivals_s`` are seconds from the request to each piece of text."""

    text: str = ""
    finish_reason: str | None = None
    tokens: int = 0
    arrivals_s: list[float] = field(default_factory=list)


def new_client(url: str) -> httpx.AsyncClient:
    """Return a client without a limit of connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=_LIMIT_S, limits=limits, trust_env=False)


async def ask(client: httpx.AsyncClient, body: Mapping[str, object]) -> Answer:
    """Return a whole answer.

    Raises: AnswerError; httpx.HTTPError when the connection breaks.
    """
    response = await client.post("/v1/completions", json=body)
    if response.status_code != httpx.codes.OK:
        raise AnswerError(f"status {response.status_code}: {response.text}")
    return _read(response.json(), Answer())


async def ask_stream(
    client: httpx.AsyncClient, body: Mapping[str, object], *, leave_after: int | None = None
) -> Answer:
    """Return a streamed answer, or its first part when the client is to leave after some pieces.

    Raises: AnswerError also when the stream breaks off; httpx.HTTPError.
    """
    answer = Answer()
    whole = {**body, "stream": True, "stream_options": {"include_usage": True}}
    start_s = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=whole) as response:
        if response.status_code != httpx.codes.OK:
            raise AnswerError(f"status {response.status_code}: {(await response.aread()).decode()}")
        async for event in _events(response):
            if event is None:
                return answer
            before = len(answer.text)
            _read(event, answer)
            if len(answer.text) > before:
                answer.arrivals_s.append(time.perf_counter() - start_s)
            if leave_after is not None and len(answer.arrivals_s) >= leave_after:
                return answer
    raise AnswerError(f"the stream broke off after {len(answer.arrivals_s)} pieces")


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, object] | None, None]:
    """Yield the objects of a stream, and None for its end."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            content = line.removeprefix("data: ")
            yield None if content == "[DONE]" else json.loads(content)


def _read(event: Mapping[str, object], answer: Answer) -> Answer:
    """Add a piece of an answer, or all of it."""
    if "error" in event:
        raise AnswerError(str(event["error"]))
    choices, usage = event.get("choices"), event.get("usage")
    if isinstance(choices, list) and choices:
        answer.text += choices[0]["text"] or ""
        answer.finish_reason = choices[0].get("finish_reason") or answer.finish_reason
    if isinstance(usage, dict):
        answer.tokens = usage["completion_tokens"]
    return answer
