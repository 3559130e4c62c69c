"""What is on the page: Gradio's components, and the names of the texts on them.

Not here: what happens when they are used (``gradio_app`` and page.js).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component

from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.server.page.texts import TEXTS, Language
from baichuan2_tpu.server.page.turns import PageSession

__all__ = ["Components", "Labels", "build_components"]

_LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]

# Gradio offers an event for every quoted name in this script.
_ATTACH = "baichuan2.attach(element.querySelector('ul'), () => trigger('select'));"


@dataclass(slots=True)
class Labels:
    """Which properties of which components are texts; English until the page switches."""

    components: list[Component | BlockContext] = field(default_factory=list[Component | BlockContext])
    names: list[Mapping[str, str]] = field(default_factory=list[Mapping[str, str]])

    def add(self, component: Component | BlockContext, **names: str) -> None:
        """Set properties of a component to texts, given by their names."""
        self.components.append(component)
        self.names.append(names)
        for name, value in self._texts(names, "en").items():
            setattr(component, name, value)

    def by_language(self) -> dict[Language, list[dict[str, str]]]:
        """Return the text properties of all components, in the order they were added."""
        return {language: [self._texts(names, language) for names in self.names] for language in TEXTS}

    @staticmethod
    def _texts(names: Mapping[str, str], language: Language) -> dict[str, str]:
        return {name: TEXTS[language][text] for name, text in names.items()}


@dataclass(frozen=True, slots=True)
class Components:
    """The components that events read and write.

    ``turn``, ``states`` and ``edited`` are hidden: they carry data to the server and back.
    """

    labels: Labels
    sidebar: gr.Sidebar
    language: gr.Button
    theme: gr.Button
    new: gr.Button
    conversations: gr.HTML
    chatbot: gr.Chatbot
    note: gr.HTML
    retry: gr.Button
    box: gr.Textbox
    system: gr.Textbox
    sampling: list[gr.Slider | gr.Number]
    turn: gr.JSON
    states: gr.JSON
    edited: gr.JSON
    session: gr.State

    @property
    def view(self) -> list[Component | BlockContext]:
        """The components that show a conversation, in the order of ``view`` in page.js."""
        return [self.chatbot, self.box, self.note, self.retry, self.system]


def build_components(model_name: str, defaults: GenerationSettings) -> Components:
    """Add the components to the page that is being built."""
    labels = Labels()
    with gr.Sidebar(width=280) as sidebar:
        new = gr.Button(variant="primary", size="md")
        conversations = gr.HTML(
            "<ul class='conversations'></ul>", js_on_load=_ATTACH, elem_id="conversations"
        )
    with gr.Row(elem_classes="head"):
        gr.Markdown(f"### {model_name}")
        language = gr.Button(size="sm", min_width=80, scale=0, elem_id="language")
        theme = gr.Button(size="sm", min_width=110, scale=0, elem_id="theme")
    chatbot = _chatbot()
    with gr.Row(elem_classes="head"):
        note = gr.HTML("<p class='note'></p>", elem_id="note")
        retry = gr.Button(size="sm", min_width=110, scale=0, visible=False, elem_id="retry")
    box = gr.Textbox(show_label=False, submit_btn=True, autofocus=True, lines=1, max_lines=8, elem_id="box")
    with gr.Accordion(open=False, elem_id="settings") as settings:
        system = gr.Textbox(lines=2, max_lines=8, elem_id="system")
        sampling = _sampling(defaults, labels)
    labels.add(new, value="new")
    labels.add(language, value="switch")
    labels.add(theme, value="theme")
    labels.add(chatbot, placeholder="hello")
    labels.add(retry, value="retry")
    labels.add(box, placeholder="ask")
    labels.add(settings, label="settings")
    labels.add(system, label="system", info="system_info")
    turn, states, edited = (gr.JSON(visible="hidden") for _ in range(3))
    session = gr.State(PageSession(), delete_callback=PageSession.stop_all)
    return Components(
        labels,
        sidebar,
        language,
        theme,
        new,
        conversations,
        chatbot,
        note,
        retry,
        box,
        system,
        sampling,
        turn,
        states,
        edited,
        session,
    )


def _chatbot() -> gr.Chatbot:
    """Return the list of messages. HTML tags in an answer are shown as text."""
    return gr.Chatbot(
        show_label=False,
        elem_id="chat",
        height="60vh",
        editable="user",
        buttons=["copy", "copy_all"],
        feedback_options=None,
        latex_delimiters=_LATEX,
        group_consecutive_messages=False,
        allow_tags=False,
        layout="bubble",
    )


def _sampling(defaults: GenerationSettings, labels: Labels) -> list[gr.Slider | gr.Number]:
    """Return the fields of ``turns.Settings`` after the system prompt, in their order."""
    sampling = defaults.sampling
    with gr.Row():
        temperature = gr.Slider(0, 2, sampling.temperature, step=0.05)
        top_k = gr.Slider(0, max(200, sampling.top_k), sampling.top_k, step=1)
        top_p = gr.Slider(0, 1, sampling.top_p, step=0.01)
    with gr.Row():
        min_p = gr.Slider(0, 1, sampling.min_p, step=0.01)
        penalty = gr.Slider(1, 2, sampling.repetition_penalty, step=0.01)
    with gr.Row():
        max_tokens = gr.Number(defaults.max_tokens, minimum=1, precision=0)
        seed = gr.Number(None, minimum=0, precision=0, elem_id="seed")
    labels.add(temperature, label="temperature", info="temperature_info")
    labels.add(top_k, label="top_k", info="top_k_info")
    labels.add(top_p, label="top_p")
    labels.add(min_p, label="min_p")
    labels.add(penalty, label="repetition_penalty")
    labels.add(max_tokens, label="max_tokens")
    labels.add(seed, label="seed", info="seed_info")
    return [temperature, top_k, top_p, min_p, penalty, max_tokens, seed]
