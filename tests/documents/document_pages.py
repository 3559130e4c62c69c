"""The pages of the repository, read as its readers read them: blocks, commands, links, transcripts.

Not here: what they must fulfil (``unit/test_documents.py``, ``unit/test_site.py``, ``demo/test_guides.py``).
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
GUIDES = sorted(page for page in ROOT.glob("docs/guides/*.md") if not page.name.endswith(".zh.md"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`(baichuan2 [^`\n]+)`")
_SEPARATORS = re.compile(r"[|&;()<>]+")
_ASSIGNMENT = re.compile(r"[A-Z_]+=")
_PREFIXES = {"sudo", "exec", "time"}


@dataclass(frozen=True)
class Block:
    """One fenced block; ``language`` is empty where none is named."""

    page: Path
    line: int
    language: str
    body: str

    @property
    def place(self) -> str:
        """Where it stands, for the name of a test."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, fence.start()) + 2, fence[1], fence[2])
        for fence in _FENCE.finditer(text)
    ]


def code_lines(page: Path, *languages: str) -> list[str]:
    """Return the lines of blocks of some languages, without comments, which are translated."""
    bodies = [block.body for block in blocks(page) if block.language in languages]
    lines = [line.split("  #")[0].rstrip() for body in bodies for line in body.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@dataclass(frozen=True)
class Step:
    """A command of a transcript and the lines it answered with."""

    command: str
    output: tuple[str, ...]


def transcript(block: Block) -> list[Step]:
    """Return the steps of a block: lines behind "$ " are commands, the others what they print."""
    steps: list[Step] = []
    for line in block.body.splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:], ()))
        else:
            assert steps, f"{block.place}: a transcript begins with a command"
            steps[-1] = Step(steps[-1].command, (*steps[-1].output, line))
    return steps


@dataclass(frozen=True)
class Command:
    """One call of ``baichuan2`` in a page, as words."""

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place} {' '.join(self.words)}"


def shell_commands(page: Path) -> Iterator[Command]:
    """Yield every call of the command in the blocks of a page."""
    for block in blocks(page):
        if block.language == "bash":
            lines = _join_lines(block.body.splitlines())
        else:
            lines = [line[2:] for line in block.body.splitlines() if line.startswith("$ ")]
        for line in lines:
            for words in calls(line):
                yield Command(block.place, words)


def spans(page: Path) -> Iterator[Command]:
    """Yield the calls named in running text, which may be parts of one."""
    text = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), page.read_text("utf-8"))
    for span in _SPAN.finditer(text):
        place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, span.start()) + 1}"
        yield Command(place, tuple(span[1].split()[1:]))


def calls(line: str) -> Iterator[tuple[str, ...]]:
    """Yield the words behind ``baichuan2``, or behind the image of that name, in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    for word in [*lexer, ";"]:
        if not _SEPARATORS.fullmatch(word):
            command.append(word)
            continue
        yield from _call(command)
        command = []


def _call(words: list[str]) -> Iterator[tuple[str, ...]]:
    while words and (_ASSIGNMENT.match(words[0]) or words[0] in _PREFIXES):
        words = words[1:]
    if words[:2] == ["docker", "run"] and "baichuan2-tpu" in words:
        words = words[words.index("baichuan2-tpu") :]
        words = words if len(words) > 1 else []
    if words and words[0].rpartition("/")[2] in {"baichuan2", "baichuan2-tpu"}:
        yield tuple(words[1:])


def _join_lines(lines: list[str]) -> Iterator[str]:
    """Yield lines of shell, joined where one continues in the next: a backslash, or an open quotation."""
    held = ""
    for line in lines:
        held += line.removesuffix("\\") + ("" if line.endswith("\\") else "\n")
        if line.endswith("\\") or not _is_whole(held):
            continue
        yield held
        held = ""
    assert not held, f"a command does not end: {held}"


def _is_whole(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True
