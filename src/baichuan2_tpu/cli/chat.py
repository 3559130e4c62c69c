"""``baichuan2 chat``: a conversation in the terminal, or with lines from a pipe.

Not here: what a conversation is (``baichuan2_tpu.chat``), reading lines (``line_editor``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.chat_commands import Command, help_text, parse_line
from baichuan2_tpu.cli.line_editor import LineReader, is_interactive, open_reader, read_message, stoppable
from baichuan2_tpu.cli.models import open_chat_model
from baichuan2_tpu.cli.show_answer import show_answer
from baichuan2_tpu.cli.terminal import notice
from baichuan2_tpu.errors import Baichuan2Error

if TYPE_CHECKING:
    from baichuan2_tpu.chat import AnswerPiece, Conversation
    from baichuan2_tpu.generate.loop import ReadProgress, Stats
    from baichuan2_tpu.model import Model

    Ask = Callable[[Callable[[], bool], ReadProgress | None], Iterable[AnswerPiece]]

__all__ = ["chat"]


def chat(
    model: options.Model,
    *,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    context: options.Context = None,
    threads: options.Threads = None,
    engine: options.Engine = options.EngineName.AUTO,
    device: options.Device = 0,
    exact: options.Exact = False,
    debug: options.Debug = False,
) -> None:
    """Chat in the terminal; /help lists the commands.

    Answers go to standard output. Without a terminal, each line of standard input is a message.
    """
    from baichuan2_tpu.generate.settings import GivenSettings
    from baichuan2_tpu.model import EngineSettings

    running = EngineSettings(engine.value, device, context, threads, exact)
    given = GivenSettings(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
    )
    with (
        open_chat_model(model, running, given) as opened,
        opened.conversation(system=system, **given) as conversation,
    ):
        loop = _ChatLoop(opened, conversation)
        if is_interactive():
            room = f"{opened.max_context} tokens of context"
            notice(f"{model} on {opened.engine.name}, {room}; /help shows commands")
        loop.run(open_reader())
        # In a terminal the person has seen what failed; a script needs the exit code.
        if loop.has_failed and not is_interactive():
            raise typer.Exit(1)


class _ChatLoop:
    """Reads messages and commands until the end, and shows what comes of them."""

    def __init__(self, model: Model, conversation: Conversation) -> None:
        self._model = model
        self._conversation = conversation
        self._stats: Stats | None = None
        self._is_over = False
        self.has_failed = False

    def run(self, read_line: LineReader) -> None:
        """Continue until /exit or the end of the input; an error ends its message only."""
        while not self._is_over:
            self._step(read_line)

    def _step(self, read_line: LineReader) -> None:
        """Read a message or a command and carry it out."""
        try:
            self._handle(read_message(read_line))
        except EOFError:
            self._is_over = True
        except KeyboardInterrupt:
            if not is_interactive():
                raise
            notice("[Ctrl-D or /exit leaves]")
        except Baichuan2Error as error:
            self.has_failed = True
            notice(f"error: {error}")

    def _handle(self, line: str) -> None:
        content = parse_line(line)
        if isinstance(content, Command):
            self._carry_out(content)
        elif content:
            self._show(lambda is_cancelled, draw: self._conversation.stream(content, is_cancelled, draw))

    def _carry_out(self, command: Command) -> None:
        actions: dict[str, Callable[[str], None]] = {
            "clear": lambda _: self._conversation.clear(),
            "system": self._set_system,
            "retry": lambda _: self._show(self._conversation.retry),
            "save": lambda name: self._conversation.save(Path(name).expanduser()),
            "load": lambda name: self._conversation.load(Path(name).expanduser()),
            "stats": lambda _: notice(self._describe()),
            "help": lambda _: notice(help_text()),
            "exit": lambda _: self._leave(),
        }
        actions[command.name](command.argument)

    def _show(self, ask: Ask) -> None:
        """Show an answer that Ctrl-C can stop."""
        with stoppable() as is_cancelled:
            result = show_answer(lambda draw: ask(is_cancelled, draw))
        self._stats = result.stats
        if result.finish_reason == "cancelled":
            notice("[stopped]")

    def _set_system(self, text: str) -> None:
        self._conversation.system = text or None

    def _leave(self) -> None:
        self._is_over = True

    def _describe(self) -> str:
        """Describe the speed of the last answer and the room that is left."""
        stats = self._stats
        if stats is None:
            return "no answer yet"
        parts = [
            f"prompt {stats.prompt_tokens} tokens, {stats.reused_tokens} of them held already",
            f"answer {stats.generated_tokens} tokens",
        ]
        if stats.first_token_s is not None:
            parts.append(f"first token {stats.first_token_s:.2f} s")
        if stats.tok_per_s is not None:
            parts.append(f"then {stats.tok_per_s:.1f} tok/s")
        used = stats.prompt_tokens + stats.generated_tokens
        parts += [f"context {used} of {self._model.max_context}", f"engine {self._model.engine.name}"]
        return "; ".join(parts)
