"""A chat with lines from a pipe and in a pseudo-terminal; the tiny model says the same nonsense each time."""

import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from baichuan2_tpu.cli import show_answer
from baichuan2_tpu.cli.line_editor import stoppable
from baichuan2_tpu.cli.terminal import printable
from running.cli_command import Outcome, Run
from running.leaving import leave

GREEDY = ("--temperature", "0", "--max-tokens", "8")


@pytest.fixture
def say(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Chat through a pipe: the lines go in, all answers come out."""

    def chat(*lines: str, options: tuple[str, ...] = GREEDY) -> Outcome:
        text = "".join(f"{line}\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return run("chat", model, *options)

    return chat


def saved(path: Path) -> list[tuple[str, str]]:
    """Return who said what, as a terminal would show it."""
    messages = json.loads(path.read_text("utf-8"))["messages"]
    return [(message["role"], printable(message["content"])) for message in messages]


def test_each_line_is_answered_on_standard_output(say: Run, run: Run, model: Path) -> None:
    done = say("bubble", "", "sort")
    assert done.code == 0
    assert done.out.startswith(run("generate", model, "bubble", *GREEDY).out)
    assert done.err == "[cut at 8 tokens; --max-tokens and --context set the limit]\n" * 2


def test_second_turn_prefills_only_what_is_new(say: Run) -> None:
    notices = say("bubble", "/stats", "sort", "/stats").err.splitlines()
    stats = [line for line in notices if line.startswith("prompt ")]
    first, second = (int(line.split(", ")[1].split()[0]) for line in stats)
    assert (first, second > 0) == (0, True)
    assert all(line.endswith("; engine cpu") for line in stats)


def test_conversation_is_saved_and_gone_on_with(say: Run, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    whole = say("one", f"/save {file}", "two")
    assert [role for role, _ in saved(file)] == ["user", "assistant"]
    assert saved(file)[1][1] + "\n" == whole.out[: len(saved(file)[1][1]) + 1]
    rest = say(f"/load {file}", "two")
    assert saved(file)[1][1] + "\n" + rest.out == whole.out


def test_system_message_and_clear_change_what_is_said(say: Run, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    say("/system be brief", "one", "/clear", "two", f"/save {file}")
    assert [said for said in saved(file) if said[0] != "assistant"] == [
        ("system", "be brief"),
        ("user", "two"),
    ]
    say("/system be brief", "one", "/system", f"/save {file}")
    assert saved(file)[0] == ("user", "one")


def test_retry_replaces_the_last_answer(say: Run, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    done = say("one", "/retry", f"/save {file}")
    assert [role for role, _ in saved(file)] == ["user", "assistant"]
    assert done.out == 2 * (saved(file)[1][1] + "\n")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/frobnicate", "error: there is no command /frobnicate; use /clear"),
        ("/retry", "error: there is no answer to try again"),
        (
            "/load nowhere.json",
            "error: nowhere.json: cannot be read (No such file or directory); name a saved file",
        ),
        ("x" * 2000, "error: the prompt is "),
    ],
)
def test_mistake_ends_its_line_only_and_fails_the_script(say: Run, line: str, complaint: str) -> None:
    done = say(line, "one")
    assert done.code == 1
    assert done.err.startswith(complaint)
    assert done.out.endswith("\n")
    assert len(done.out) > 1


def test_exit_leaves_the_rest_unread(say: Run) -> None:
    done = say("/help", "/stats", "/exit", "one")
    assert (done.code, done.out) == (0, "")
    assert "/retry" in done.err
    assert done.err.endswith("no answer yet\n")


def test_long_conversation_says_what_it_leaves_out(say: Run) -> None:
    done = say(*["a quite long question about many things " * 2] * 6, options=(*GREEDY, "--context", "200"))
    assert done.code == 0
    assert "[the context is full; oldest rounds left out: 1]" in done.err


@pytest.fixture
def terminal(model: Path, tmp_path: Path) -> Iterator["pexpect.spawn[str]"]:
    """A chat in a pseudo-terminal, at its first prompt."""
    environment = {
        **os.environ,
        "TERM": "xterm",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    code = "from baichuan2_tpu.cli import main; main()"
    child = pexpect.spawn(
        sys.executable,
        ["-c", code, "chat", str(model), "--temperature", "0", "--max-tokens", "12"],
        env=environment,
        encoding="utf-8",
        timeout=60,
    )
    child.expect("/help shows commands")
    child.expect("2004h.*>")  # the line editor is ready
    yield child
    child.close(force=True)


def test_terminal_chat_keeps_lines_typed_and_leaves_with_control_d(
    terminal: "pexpect.spawn[str]", tmp_path: Path
) -> None:
    terminal.send("/system be\x1b\rbrief\r")
    terminal.expect("2004l.*2004h.*>")
    terminal.send("/save chat\\\r")
    terminal.expect("…")
    terminal.send("\x03")
    terminal.expect("Ctrl-D or /exit leaves.*2004h.*>")
    terminal.send(f"/save {tmp_path / 'chat.json'}\r")
    terminal.expect("2004l.*2004h.*>")
    leave(terminal)
    assert terminal.exitstatus == 0
    assert saved(tmp_path / "chat.json") == [("system", "be\nbrief")]
    history = tmp_path / "state" / "baichuan2-tpu" / "chat_history"
    assert "+/system be" in history.read_text("utf-8")
    assert history.stat().st_mode & 0o077 == 0


def test_terminal_chat_answers_two_turns(terminal: "pexpect.spawn[str]") -> None:
    for words in ("bubble", "sort"):
        terminal.send(f"{words}\r")
        terminal.expect("cut at 12 tokens.*2004h.*>")
    terminal.send("/stats\r")
    terminal.expect(r"prompt \d+ tokens, \d+ of them held already; answer 12 tokens.* of 256")
    held = re.search(r"(\d+) of them held", str(terminal.after))
    assert held is not None
    assert int(held.group(1)) > len("bubble")
    terminal.send("/exit\r")
    terminal.expect(pexpect.EOF)


def test_terminal_chat_tells_how_much_of_a_long_prompt_is_read(terminal: "pexpect.spawn[str]") -> None:
    terminal.send(f"{'bubble sort ' * 20}\r")
    terminal.expect(r"\rreading 128/\d+\r +\r.*cut at 12 tokens")
    terminal.send("/exit\r")
    terminal.expect(pexpect.EOF)


def test_control_c_stops_the_answer_and_keeps_the_chat(
    say: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[str] = []

    def press_control_c(text: str) -> None:
        shown.append(text)
        if len(shown) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(show_answer, "write_result", press_control_c)
    file = tmp_path / "chat.json"
    done = say("one", "two", f"/save {file}")
    assert (done.code, done.err.splitlines()[0]) == (0, "[stopped]")
    assert [role for role, _ in saved(file)] == ["user", "assistant"] * 2
    assert len(saved(file)[1][1]) < len(saved(file)[3][1])


def test_second_control_c_interrupts_at_once() -> None:
    with stoppable() as is_stopped:
        assert not is_stopped()
        signal.raise_signal(signal.SIGINT)
        assert is_stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
