"""The page in the API's app: its events, and the access check in front of both.

Most events only change what the browser shows (page.js); the server answers turns and stops them.
Not here: what is on the page (``components``), how a turn is answered (``turns``), who may open it
(``access``).
Source: Gradio 6, whose functions written in JavaScript get the values of inputs and return those of outputs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import cast

import gradio as gr
from fastapi import FastAPI
from gradio.queueing import Queue
from gradio.themes import Default
from pydantic import ValidationError
from starlette.routing import Mount

from baichuan2_tpu.server.app import ServerOptions
from baichuan2_tpu.server.page.access import PageAccess
from baichuan2_tpu.server.page.components import Components, Labels, build_components
from baichuan2_tpu.server.page.gradio_guards import (
    NO_EVENT,
    EventFilter,
    Listeners,
    ListenerWatch,
    QueuePace,
)
from baichuan2_tpu.server.page.texts import TEXTS, read_part
from baichuan2_tpu.server.page.turns import Asker, PageSession, Turn, answer_turn
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


def add_page(app: FastAPI, service: Service, options: ServerOptions) -> None:
    """Serve the page at ``/``, to those who give one of its keys if there are any.

    Side effect: the page becomes the first middleware of ``app`` and joins its lifespan; call this last.
    """
    listeners = Listeners()
    # Outside an event loop Gradio opens one for each of its locks, and closes none.
    inputs, queue = asyncio.run(_mount(app, service, listeners))
    # Gradio's own route would take every path that the API does not have.
    mount = cast("Mount", app.router.routes.pop())
    events = EventFilter(ListenerWatch(QueuePace(mount.app, queue), listeners), inputs)
    page = BodyLimit(events, options.max_body_bytes)
    app.add_middleware(PageAccess, page=page, keys=options.api_keys, share=options.share_prefixes)


async def _mount(app: FastAPI, service: Service, listeners: Listeners) -> tuple[dict[int, int], Queue]:
    """Mount the page; return the number of inputs of every function that the server runs, and its queue."""
    page, labels = _build(service, listeners)
    # System fonts only: Gradio's themes would load theirs from the network.
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
    inputs = {
        index: len(event.inputs)
        for index, event in page.fns.items()
        if event.fn is not None  # pyright: ignore[reportUnknownMemberType] - a function of any kind
    }
    # Gradio has no option for how often it looks at its queue.
    return inputs, page._queue  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _build(service: Service, listeners: Listeners) -> tuple[gr.Blocks, Labels]:
    model = service.model
    with gr.Blocks(title=model.name, analytics_enabled=False, fill_height=True) as page:
        components = build_components(model.name, model.settings)
        _add_turns(components, service, listeners)
        _add_browser_events(components)
        page.load(
            js="(...defaults) => baichuan2.start(...defaults)",
            inputs=components.sampling,
            outputs=[
                *components.view,
                *components.sampling,
                *components.labels.components,
                components.sidebar,
            ],
        )
    page.queue(default_concurrency_limit=None)
    return page, components.labels


def _add_turns(components: Components, service: Service, listeners: Listeners) -> None:
    """Let the server answer questions that are asked, retried or edited, and stop answers."""

    async def answer(
        turn: Mapping[str, object] | None, session: PageSession, request: gr.Request
    ) -> AsyncGenerator[Mapping[str, object], None]:
        if turn is None:  # no question, or an answer is still running
            return
        http = request.request
        asker = Asker(
            http.client.host if http and http.client else "",
            getattr(http.state, "tenant", "") if http else "",
        )
        try:
            question = Turn.model_validate(turn)
        except ValidationError as error:
            raise _no_event() from error

        def is_heard() -> bool:
            return listeners.has(request.session_hash or "")

        async for states in answer_turn(service, session, question, asker, is_heard):
            yield states

    def stop(turn_id: str, session: PageSession) -> None:
        session.stop(turn_id)

    def read_edit(event: gr.EventData) -> dict[str, object]:
        try:
            return {"index": event.index, "content": event.value}
        except (AttributeError, TypeError) as error:
            raise _no_event() from error

    settings = [components.system, *components.sampling]
    outputs = [components.turn, *components.view]
    ask = components.box.submit(
        js="(...values) => baichuan2.ask(...values)", inputs=[components.box, *settings], outputs=outputs
    )
    retry = components.retry.click(
        js="(...values) => baichuan2.retry(...values)", inputs=settings, outputs=outputs
    )
    edit = components.chatbot.edit(read_edit, outputs=components.edited, show_progress="hidden").then(
        js="(...values) => baichuan2.edit(...values)", inputs=[components.edited, *settings], outputs=outputs
    )
    for event in (ask, retry, edit):
        event.then(
            answer,
            inputs=[components.turn, components.session],
            outputs=components.states,
            show_progress="hidden",
            trigger_mode="multiple",
            concurrency_limit=None,
        ).failure(js="() => baichuan2.lose()", outputs=components.view)
    components.states.change(
        js="(states) => baichuan2.grow(states)", inputs=components.states, outputs=components.view
    )
    components.box.stop(
        stop, js="(_, session) => [baichuan2.stopped(), session]", inputs=[components.box, components.session]
    )


def _no_event() -> gr.Error:
    """Return the error for an event that the page never sends; Gradio does not print it."""
    return gr.Error(NO_EVENT, print_exception=False)


def _add_browser_events(components: Components) -> None:
    """Let the browser switch conversations, languages and colours, and store the settings."""
    view = [*components.view, components.sidebar]
    components.conversations.select(js="() => baichuan2.choose()", outputs=view)
    components.new.click(js="() => baichuan2.startNew()", outputs=view)
    components.chatbot.clear(js="() => baichuan2.removeCurrent()", outputs=components.view)
    components.language.click(
        js="() => baichuan2.switchLanguage()", outputs=[components.note, *components.labels.components]
    )
    components.theme.click(js="() => baichuan2.switchTheme()")
    components.system.change(js="(system) => baichuan2.setSystem(system)", inputs=components.system)
    for field in components.sampling:
        field.change(js="(...values) => baichuan2.keepSettings(...values)", inputs=components.sampling)


def _script(labels: Labels) -> str:
    """Return page.js with the texts and labels filled in."""
    texts, own_labels = (json.dumps(value, ensure_ascii=False) for value in (TEXTS, labels.by_language()))
    return read_part("page.js").replace('"{{texts}}"', texts).replace('"{{labels}}"', own_labels)
