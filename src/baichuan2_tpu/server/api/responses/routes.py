"""``/v1/responses``, and what is stored of responses.

A handler checks and translates in a worker thread, since texts can be long; then it only forwards events.
Not here: what fields mean (``input``), writing (``writer``), sending (``api.event_stream``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic_core import from_json
from starlette.responses import Response

from baichuan2_tpu.errors import ContextLengthError
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.server.api.chat_input import chat_requests, fit_tools
from baichuan2_tpu.server.api.event_stream import KeepAlive, send_events, send_whole
from baichuan2_tpu.server.api.fields import REFUSED_OF_RESPONSES, IgnoredFields
from baichuan2_tpu.server.api.headers import ignored_header, left_out_header
from baichuan2_tpu.server.api.responses.input import as_chat, blame_response, check_text, read_conversation
from baichuan2_tpu.server.api.responses.objects import DeletedResponse, ItemList, ResponseObject
from baichuan2_tpu.server.api.responses.schema import ResponseRequest
from baichuan2_tpu.server.api.responses.store import ResponseStore, StoredItem
from baichuan2_tpu.server.api.responses.writer import Keeping, ResponseWriter
from baichuan2_tpu.server.callers import CallerThreads
from baichuan2_tpu.server.errors import DOCUMENTED, ApiError
from baichuan2_tpu.server.scheduling.answers import Answers
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.server.tenants import current_holder

__all__ = ["response_routes"]

_STREAM = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
_PATH = "/responses/{response_id}"
_MOST_ITEMS = 100  # per page, as OpenAI has it


def response_routes(service: Service, store: ResponseStore, threads: CallerThreads) -> APIRouter:
    """Return the routes for responses, which are prepared in threads and kept in a store."""
    router = APIRouter(prefix="/v1", responses=DOCUMENTED, tags=["responses"])
    fields = IgnoredFields(is_strict=service.rules.is_strict)

    @router.post("/responses", response_model=ResponseObject, responses={200: _STREAM})
    async def respond(body: ResponseRequest, request: Request, is_kept_alive: KeepAlive) -> Response:
        """Answer an input, and what was said before it."""
        client = request.client.host if request.client else ""
        asked = await threads.run(request, _ask, body, service, fields, store, client)
        if body.stream:
            response = send_events(
                asked.answers, asked.writer.events(asked.answers), asked.writer.write_error
            )
        else:
            write = asked.writer.write_all
            response = await send_whole(request, asked.answers, write, is_kept_alive=is_kept_alive)
        response.headers.update(asked.headers)
        return response

    @router.get(_PATH, response_model=ResponseObject)
    def show(response_id: str, *, stream: bool = False) -> Response:
        """Return a stored response."""
        if stream:
            raise ApiError("stream: a stored response is complete; leave stream out", param="stream")
        stored = store.get(current_holder.get(), response_id)
        return Response(stored.content, media_type="application/json")

    @router.delete(_PATH)
    def delete(response_id: str) -> DeletedResponse:
        """Forget a stored response; those that continue it are kept, with what it said."""
        store.delete(current_holder.get(), response_id)
        return DeletedResponse(id=response_id)

    @router.get(f"{_PATH}/input_items")
    def list_input(
        response_id: str,
        limit: Annotated[int, Query(ge=1, le=_MOST_ITEMS)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> ItemList:
        """List what a stored response answers, with what was said before; the newest first."""
        items = list(store.get(current_holder.get(), response_id).input_items)
        if order == "desc":
            items.reverse()
        return _page(items[_place(items, after) :], limit)

    return router


@dataclass(frozen=True, slots=True)
class _Asked:
    """An answer on its way, who writes it, and the headers that say what was left out."""

    answers: Answers
    writer: ResponseWriter
    headers: Mapping[str, str]


def _ask(
    body: ResponseRequest, service: Service, fields: IgnoredFields, store: ResponseStore, client: str
) -> _Asked:
    service.check_model(body.model)
    check_text(body)
    ignored = fields.check(body, REFUSED_OF_RESPONSES)
    if body.store and not store.limits.responses:
        ignored.append("store")
    holder = current_holder.get()
    items = read_conversation(body, store, holder)
    try:
        asked = as_chat(body, items)
        chat = fit_tools(asked, service)
        (request,) = chat_requests(chat, service, client, is_trimmed=body.truncation == "auto")
        answers = service.submit([request])
    except (ApiError, ContextLengthError) as error:
        raise blame_response(error) from error
    writer = ResponseWriter(body, chat, request, service, Keeping(store, holder, items))
    return _Asked(answers, writer, {**ignored_header(ignored), **left_out_header(asked, chat)})


def _place(items: list[StoredItem], after: str | None) -> int:
    """Return the place behind an item; the first one without an item."""
    if after is None:
        return 0
    places = (index + 1 for index, item in enumerate(items) if item.id == after)
    place = next(places, None)
    if place is None:
        raise ApiError(f"after: {quote(after)} is no item of this response", param="after")
    return place


def _page(items: list[StoredItem], limit: int) -> ItemList:
    shown = items[:limit]
    return ItemList(
        data=[from_json(item.content) for item in shown],
        first_id=shown[0].id if shown else "",
        last_id=shown[-1].id if shown else "",
        has_more=len(items) > limit,
    )
