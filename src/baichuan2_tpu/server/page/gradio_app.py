"""The page in the API's app: its events, and the door in front of both.

Most events only move things about in the browser (``page.js``); the server answers turns and stops them.
Not here: what is on the page (``parts``), how a turn is answered (``answering``), who gets in (``door``).
Source: Gradio 6, whose functions written in JavaScript get the values of inputs and return those of outputs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Collection, Mapping
from typing import cast

import gradio as gr
from fastapi import FastAPI
from gradio.themes import Default
from pydantic import ValidationError
from starlette.routing import Mount

from baichuan2_tpu.server.page.access import PageDoor
from baichuan2_tpu.server.page.components import Labels, Parts, build_parts
from baichuan2_tpu.server.page.gradio_guards import NO_EVENT, EventFilter, Listeners, ListenerWatch
from baichuan2_tpu.server.page.texts import TEXTS, read_part
from baichuan2_tpu.server.page.turns import PageSession, Turn, answer_turn
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.server.transport.guards import BodyLimit

__all__ = ["add_page"]

_SANS = [
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono"]


def add_page(app: FastAPI, service: Service, *, keys: Collection[str], max_body_bytes: int) -> None:
    """Serve the page at ``/``, to those who give one of ``keys`` if there are any.

    Side effect: the page becomes the first middleware of ``app`` and joins its lifespan; call this last.
    """
    listeners = Listeners()
    # Outside of an event loop Gradio makes one for each of its locks, and closes none.
    inputs = asyncio.run(_mount(app, service, listeners))
    # Gradio's own route would take every path that the API has not.
    mount = cast("Mount", app.router.routes.pop())
    events = EventFilter(ListenerWatch(mount.app, listeners), inputs)
    app.add_middleware(PageDoor, page=BodyLimit(events, max_body_bytes), keys=keys)


async def _mount(app: FastAPI, service: Service, listeners: Listeners) -> dict[int, int]:
    """Mount the page; return the number of inputs of each function that the server runs."""
    page, labels = _build(service, listeners)
    # Fonts of the system alone: a theme of Gradio's would load its own from the network.
    theme = Default(font=[*_SANS, "sans-serif"], font_mono=[*_MONO, "monospace"])
    gr.mount_gradio_app(  # pyright: ignore[reportUnknownMemberType] - its ``auth`` is any function
        app,
        page,
        path="/",
        theme=theme,
        css=read_part("page.css"),
        head=f"<script>{_script(labels)}</script>",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    return {
        index: len(event.inputs)
        for index, event in page.fns.items()
        if event.fn is not None  # pyright: ignore[reportUnknownMemberType] - a function of any kind
    }


def _build(service: Service, listeners: Listeners) -> tuple[gr.Blocks, Labels]:
    model = service.model
    with gr.Blocks(title=model.name, analytics_enabled=False, fill_height=True) as page:
        parts = build_parts(model.name, model.settings)
        _add_turns(parts, service, listeners)
        _add_browser_events(parts)
        page.load(
            js="(...defaults) => baichuan2.start(...defaults)",
            inputs=parts.sampling,
            outputs=[*parts.view, *parts.sampling, *parts.labels.components, parts.sidebar],
        )
    page.queue(default_concurrency_limit=None)
    return page, parts.labels


def _add_turns(parts: Parts, service: Service, listeners: Listeners) -> None:
    """Let the server answer what is asked, tried again or edited, and stop it."""

    async def answer(
        turn: Mapping[str, object] | None, session: PageSession, request: gr.Request
    ) -> AsyncGenerator[Mapping[str, object], None]:
        if turn is None:  # nothing was asked, or an answer still grows
            return
        http = request.request
        client = http.client.host if http and http.client else ""
        try:
            asked = Turn.model_validate(turn)
        except ValidationError as error:
            raise _no_event() from error

        def is_heard() -> bool:
            return listeners.has(request.session_hash or "")

        async for states in answer_turn(service, session, asked, client, is_heard):
            yield states

    def stop(turn_id: str, session: PageSession) -> None:
        session.stop(turn_id)

    def edited(event: gr.EventData) -> dict[str, object]:
        try:
            return {"index": event.index, "content": event.value}
        except (AttributeError, TypeError) as error:
            raise _no_event() from error

    settings = [parts.system, *parts.sampling]
    begun = [parts.turn, *parts.view]
    asked = parts.box.submit(
        js="(...values) => baichuan2.ask(...values)", inputs=[parts.box, *settings], outputs=begun
    )
    retried = parts.retry.click(
        js="(...values) => baichuan2.retry(...values)", inputs=settings, outputs=begun
    )
    changed = parts.chatbot.edit(edited, outputs=parts.edited, show_progress="hidden").then(
        js="(...values) => baichuan2.edit(...values)", inputs=[parts.edited, *settings], outputs=begun
    )
    for event in (asked, retried, changed):
        event.then(
            answer,
            inputs=[parts.turn, parts.session],
            outputs=parts.states,
            show_progress="hidden",
            trigger_mode="multiple",
            concurrency_limit=None,
        ).failure(js="() => baichuan2.lose()", outputs=parts.view)
    parts.states.change(js="(states) => baichuan2.grow(states)", inputs=parts.states, outputs=parts.view)
    parts.box.stop(
        stop, js="(_, session) => [baichuan2.stopped(), session]", inputs=[parts.box, parts.session]
    )


def _no_event() -> gr.Error:
    """Return what the page shows for an event it never sends, and Gradio does not print."""
    return gr.Error(NO_EVENT, print_exception=False)


def _add_browser_events(parts: Parts) -> None:
    """Let the browser switch between conversations, languages and colours, and keep what is set."""
    chosen = [*parts.view, parts.sidebar]
    parts.conversations.select(js="() => baichuan2.choose()", outputs=chosen)
    parts.new.click(js="() => baichuan2.startNew()", outputs=chosen)
    parts.chatbot.clear(js="() => baichuan2.removeCurrent()", outputs=parts.view)
    parts.language.click(
        js="() => baichuan2.switchLanguage()", outputs=[parts.note, *parts.labels.components]
    )
    parts.theme.click(js="() => baichuan2.switchTheme()")
    parts.system.change(js="(system) => baichuan2.setSystem(system)", inputs=parts.system)
    for field in parts.sampling:
        field.change(js="(...values) => baichuan2.keepSettings(...values)", inputs=parts.sampling)


def _script(labels: Labels) -> str:
    """Return page.js with the texts in it."""
    texts, own = (json.dumps(value, ensure_ascii=False) for value in (TEXTS, labels.by_language()))
    return read_part("page.js").replace('"{{texts}}"', texts).replace('"{{labels}}"', own)
