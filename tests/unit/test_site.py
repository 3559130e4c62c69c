"""The documentation site builds without a warning, its links and anchors hold, and it calls nobody."""

import os
import posixpath
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from documents.document_pages import GUIDES, ROOT

EXTERNAL = {"http", "https", "mailto"}


class Seen(HTMLParser):
    """What a page leads to, what it loads, and the names it can be entered by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.names |= {values[name] for name in ("id", "name") if name in values}
        is_link = tag == "a"
        found = [values[name] for name in ("href", "src") if values.get(name)]
        (self.links if is_link else self.loads).extend(found)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The site and what the build said."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # Material's own news
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return site, done.stderr


@pytest.fixture
def site(built: tuple[Path, str]) -> Path:
    return built[0]


@cache
def seen(page: Path) -> Seen:
    return Seen(page.read_text("utf-8"))


def pages(site: Path) -> list[Path]:
    return sorted(page for page in site.rglob("*.html") if page.name != "404.html")


def test_the_site_builds_without_a_warning(built: tuple[Path, str]) -> None:
    assert "WARNING" not in built[1]


def test_every_guide_is_on_the_site_in_both_languages(site: Path) -> None:
    for guide in GUIDES:
        english = (site / "guides" / f"{guide.stem}.html").read_text("utf-8")
        chinese = (site / "zh" / "guides" / f"{guide.stem}.html").read_text("utf-8")
        assert '<html lang="en"' in english
        assert '<html lang="zh"' in chinese
        assert "中文" in english
        assert chinese.count("的") > 3, "the page is no Chinese one"


def test_links_and_anchors_of_the_site_lead_somewhere(site: Path) -> None:
    wrong = [
        f"{page.relative_to(site)}: {link}"
        for page in pages(site)
        for link in seen(page).links
        if urlsplit(link).scheme not in EXTERNAL and not leads_somewhere(site, page, link)
    ]
    assert wrong == []


def leads_somewhere(site: Path, page: Path, link: str) -> bool:
    parts = urlsplit(link)
    path = unquote(parts.path)
    target = Path(posixpath.normpath(page.parent / path)) if path else page
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file() or not target.is_relative_to(site):
        return False
    return not parts.fragment or target.suffix != ".html" or unquote(parts.fragment) in seen(target).names


def test_examples_and_settings_for_deployment_are_on_the_site(site: Path) -> None:
    for name in ("examples/openai_chat.py", "deploy/baichuan2.service", "deploy/Dockerfile"):
        assert (site / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_site_loads_nothing_from_others(site: Path) -> None:
    loaded = {link for page in site.rglob("*.html") for link in seen(page).loads}
    assert len(loaded) > 3
    assert {link for link in loaded if urlsplit(link).netloc} == set()


def test_search_finds_pages_of_both_languages(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text("utf-8")
    assert '"location":"guides/pc.html"' in index
    assert '"location":"zh/guides/pc.html"' in index
    assert '"location":"zh/cli.html"' not in index, "an English page is found twice"
