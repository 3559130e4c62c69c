"""Slash commands are read strictly: a slip is an error, never a message to the model."""

import pytest

from baichuan2_tpu.cli.chat_commands import COMMANDS, Command, help_text, parse_line
from baichuan2_tpu.errors import RequestError


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("hello", "hello"),
        ("  /etc/hosts is what?", "/etc/hosts is what?"),
        ("/clear", Command("clear")),
        ("/clear  ", Command("clear")),
        ("/system", Command("system")),
        ("/system be\nbrief", Command("system", "be\nbrief")),
        ("/save my chat.json", Command("save", "my chat.json")),
    ],
)
def test_line_is_a_message_or_a_command(line: str, read: Command | str) -> None:
    assert parse_line(line) == read


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/quit", "there is no command /quit; use /clear, .*begin with a space"),
        ("/", "there is no command /;"),
        ("/save", "/save needs a file name: /save FILE"),
        ("/retry now", "/retry takes no argument, not 'now'"),
    ],
)
def test_wrong_command_is_refused_with_the_next_step(line: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        parse_line(line)


def test_help_names_every_command() -> None:
    assert all(f"/{name}" in help_text() for name in COMMANDS)
