"""The documents stay true to the tree: links lead somewhere, commands are ones the program takes, both
languages give the same, and every message that is quoted is one the program has.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from baichuan2_tpu.cli import app
from baichuan2_tpu.cli.options import Settings
from documents.document_pages import (
    GUIDES,
    PAGES,
    ROOT,
    Command,
    blocks,
    calls,
    code_lines,
    shell_commands,
    spans,
)
from documents.messages import message_forms

LINK = re.compile(r"\]\(([^)#\s]+)")
LOCAL_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s:]+)(?:#[^)\s]+)?\)")
COMMANDS = [command for page in PAGES for command in shell_commands(page)]
CHINESE = [
    ROOT / "README_zh.md",
    *sorted(ROOT.glob("docs/**/*.zh.md")),
    ROOT / "src" / "baichuan2_tpu" / "server" / "page" / "texts.py",
]
NOT_TEXT = re.compile(r"`[^`\n]*`|\]\([^)\s]*\)|<?https?://[^\s>]+>?")
"""Code in a line, the target of a link, an address: they keep the marks they have."""
HALF_WIDTH = re.compile(r"[\u4e00-\u9fff][,:;?!()]|[,:;?!()][\u4e00-\u9fff]")
SPANS = [command for page in PAGES for command in spans(page)]
TRANSLATED = [(guide, guide.with_suffix(".zh.md")) for guide in GUIDES]
PACKAGE = ROOT / "src" / "baichuan2_tpu"
NAMED_FROM = (ROOT, PACKAGE, PACKAGE / "server", PACKAGE / "engine", PACKAGE / "native")
"""Where the paths begin that a page for developers names; two of the lives name the room once."""
NAMED_FILE = re.compile(r"`((?:[a-z0-9_]+/)*[a-z0-9_]+\.(?:py|h|cpp|md))`")
VERBATIM = ("bash", "python", "console", "text", "nginx", "yaml", "ini", "json")
VERBS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_local_links_lead_to_files(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text("utf-8")) if "://" not in link]
    missing = [link for link in targets if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_pages_for_developers_name_files_that_exist(page: str) -> None:
    """The table of layers still named modules that had moved to other rooms."""
    names = set(NAMED_FILE.findall((ROOT / page).read_text("utf-8")))
    assert len(names) > 10
    assert [name for name in sorted(names) if not any((room / name).exists() for room in NAMED_FROM)] == []


def test_both_readmes_give_the_same_commands() -> None:
    english, chinese = (code_lines(ROOT / page, "bash", "python") for page in ("README.md", "README_zh.md"))
    assert english == chinese


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_readme_can_be_read_in_one_sitting(page: str) -> None:
    assert len((ROOT / page).read_text("utf-8").splitlines()) <= 250


@pytest.mark.parametrize(("english", "chinese"), TRANSLATED, ids=[guide.stem for guide in GUIDES])
def test_every_guide_says_the_same_in_both_languages(english: Path, chinese: Path) -> None:
    assert code_lines(english, *VERBATIM) == code_lines(chinese, *VERBATIM)
    assert headings(english) == headings(chinese)


def headings(page: Path) -> list[int]:
    """Return the level of every heading."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


@pytest.mark.parametrize("page", CHINESE, ids=name)
def test_chinese_text_has_full_width_punctuation(page: Path) -> None:
    """Every comma, colon and bracket of the Chinese pages was half-width, which no publisher prints."""
    lines = [NOT_TEXT.sub("`", line) for line in page.read_text("utf-8").splitlines()]
    assert [line for line in lines if HALF_WIDTH.search(line)] == []


@pytest.mark.parametrize("page", [page for page in CHINESE if page.suffix == ".md"], ids=name)
def test_chinese_pages_mark_links_to_english_pages(page: Path) -> None:
    """Half of the links in the Chinese README opened an English page, and nothing said so."""
    text = page.read_text("utf-8")
    links = [link for link in LOCAL_LINK.finditer(text) if is_english_page(page.parent / link["target"])]
    assert [link[0] for link in links if link["text"] != "English" and not is_marked(text, link)] == []


def is_english_page(page: Path) -> bool:
    return page.suffix == ".md" and not page.name.endswith((".zh.md", "_zh.md"))


def is_marked(text: str, link: re.Match[str]) -> bool:
    """Tell whether "英文" stands behind a link, or in front of the list that it is in."""
    paragraph = text[text.rfind("\n\n", 0, link.start()) + 1 : link.start()]
    return text.startswith("（英文）", link.end()) or "（英文）：" in paragraph


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_the_program_takes_every_command_of_the_documents(command: Command) -> None:
    verb, words = verb_of(command)
    if verb is None or {"-h", "--help"} & set(words):
        assert command.words[-1] in {"--version", "--help", "-h"}
    else:
        assert words_left(verb, words) == []


def words_left(verb: Any, words: list[str]) -> list[str]:
    """Parse what follows a verb, which raises for options it does not have; return what it leaves over."""
    left: list[str] = verb.make_context(verb.name, words, obj=Settings()).args
    return left


@pytest.mark.parametrize("command", SPANS, ids=str)
def test_running_text_names_verbs_and_options_that_exist(command: Command) -> None:
    verb, words = verb_of(command)
    said = {word.partition("=")[0].rstrip(".,") for word in words if word.startswith("--")}
    known = {option for parameter in getattr(verb, "params", ()) for option in parameter.opts} | {"--help"}
    assert verb is not None
    assert said <= known


def verb_of(command: Command) -> tuple[Any, list[str]]:
    """Return what parses a command, None for options of the program alone, and the words left for it."""
    verb: Any = None  # its class is private to Typer
    words, verbs = list(command.words), VERBS
    while words and words[0] in verbs:
        verb = verbs[words.pop(0)]
        verbs = getattr(verb, "commands", {})
    if verb is None and not words[0].startswith("-"):
        pytest.fail(f"there is no verb {words[0]}")
    return verb, words


def test_the_service_unit_starts_with_a_command_the_program_takes() -> None:
    unit = (ROOT / "deploy" / "baichuan2.service").read_text("utf-8")
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    (words,) = calls(start.removeprefix("ExecStart="))
    verb, options = verb_of(Command("deploy/baichuan2.service", words))
    assert verb.name == "serve"
    assert words_left(verb, options) == []


def test_the_soc_guide_shows_a_recorded_screen() -> None:
    screen = (ROOT / "tests" / "machines" / "soc_broken.txt").read_text("utf-8")
    shown = [one.body for one in blocks(ROOT / "docs" / "guides" / "soc.md") if one.language == "text"]
    assert len(shown) == 1
    assert shown[0] in screen


def test_every_message_quoted_as_ours_is_in_the_program() -> None:
    page = ROOT / "docs" / "guides" / "troubleshooting.md"
    lines = [line for block in blocks(page) if block.language == "text" for line in block.body.splitlines()]
    quoted = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    forms = message_forms(ROOT / "src")
    assert len(quoted) >= 30
    assert [line for line in quoted if not any(form.fullmatch(line) for form in forms)] == []
