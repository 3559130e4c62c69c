"""The documents stay true to the tree: links lead somewhere, and both READMEs give the same commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)")


def code_lines(page: str) -> list[str]:
    """Return the lines of all shell and Python blocks, without comments, which are translated."""
    blocks = [
        body
        for language, body in FENCE.findall((ROOT / page).read_text("utf-8"))
        if language in {"bash", "python"}
    ]
    lines = [line.split("  #")[0].rstrip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_to_files(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text("utf-8")) if "://" not in link]
    missing = [link for link in targets if not (page.parent / link).exists()]
    assert missing == []


def test_both_readmes_give_the_same_commands() -> None:
    assert code_lines("README.md") == code_lines("README_zh.md")


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_readme_can_be_read_in_one_sitting(page: str) -> None:
    assert len((ROOT / page).read_text("utf-8").splitlines()) <= 250
