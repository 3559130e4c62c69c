"""The slash commands of a chat: their names, and how a line is read.

Not here: carrying a command out (``chat``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from baichuan2_tpu.errors import RequestError

__all__ = ["COMMANDS", "Command", "help_text", "parse_line"]

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "clear": ("", "forget the conversation, keep the system message"),
        "system": ("TEXT", "set the system message; without TEXT, remove it"),
        "retry": ("", "answer the last message again"),
        "save": ("FILE", "write the conversation as JSON"),
        "load": ("FILE", "continue a saved conversation"),
        "stats": ("", "show the speed of the last answer and the context that is left"),
        "help": ("", "show these commands"),
        "exit": ("", "leave, as Ctrl-D does"),
    }
)
"""Name of a command -> what follows it, what it does."""


@dataclass(frozen=True, slots=True)
class Command:
    """A line that began with a slash."""

    name: str
    argument: str = ""


def parse_line(line: str) -> Command | str:
    """Return the command of a line that begins with a slash, or the line as a message.

    Raises: RequestError for an unknown command, a missing file name, or an argument where none is allowed.
    """
    if not line.startswith("/"):
        return line.strip()
    name, _, argument = line[1:].partition(" ")
    name, argument = name.strip(), argument.strip()
    if name not in COMMANDS:
        known = ", ".join(f"/{known}" for known in COMMANDS)
        raise RequestError(f"there is no command /{name}; use {known}, or begin with a space to send a slash")
    placeholder = COMMANDS[name][0]
    if placeholder == "FILE" and not argument:
        raise RequestError(f"/{name} needs a file name: /{name} FILE")
    if not placeholder and argument:
        raise RequestError(f"/{name} takes no argument, not {argument!r}")
    return Command(name, argument)


def help_text() -> str:
    """Return the commands, one per line."""
    rows = [(f"/{name} {argument}".strip(), effect) for name, (argument, effect) in COMMANDS.items()]
    lines = [f"{usage:<14}{effect}" for usage, effect in rows]
    lines += [
        "Alt-Enter, or \\ at the end of a line, begins another line of the same message.",
        "Ctrl-C stops an answer; Ctrl-D leaves.",
    ]
    return "\n".join(lines)
