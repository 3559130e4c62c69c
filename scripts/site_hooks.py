"""Hooks of the documentation site: add the pages outside docs/, and point every link to its page.

The pages are written for readers of the repository: a link is relative to its file, may lead out of
docs/, and a Chinese page names the Chinese one (``pc.zh.md``). On the site the READMEs are the home pages,
and MkDocs itself chooses the language of a page. Not here: settings (``mkdocs.yml``).
Source: MkDocs 1.6, "Hooks" and ``File.generated``; mkdocs-static-i18n 1.3, which sorts files by their suffix.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "README_zh.md": "index.zh.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Pages outside docs/: path in the repository, place on the site."""
FILES = ("LICENSE", "deploy/**/*", "examples/*.*")
"""Files that pages link to, copied as they are."""

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]+)?\)")
_CHINESE = ".zh.md"


@event_priority(100)  # before the languages are sorted out
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files outside docs/."""
    for place in PAGES.values():  # as if in docs/: other pages are not sorted by language
        files.append(File(place, config.docs_dir, config.site_dir, config.use_directory_urls))
    for path in (path for kind in FILES for path in _paths(kind)):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:  # noqa: ARG001
    """Return the text of a page outside docs/; others are read by MkDocs."""
    path = _path(page)
    return None if path.startswith("docs/") else (ROOT / path).read_text("utf-8")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turn links between files of the repository into links between pages of the site."""
    path = _path(page)
    if config.theme["language"] == "zh" and not page.file.src_uri.endswith(_CHINESE):
        page.meta["search"] = {"exclude": True}  # an English page in the Chinese part: found once
    return _LINK.sub(lambda link: _convert_link(path, *link.groups(default="")), markdown)


def _path(page: Page) -> str:
    """Return the path of a page's file in the repository."""
    place = page.file.src_uri
    return next((path for path, on_site in PAGES.items() if on_site == place), f"docs/{place}")


def _paths(kind: str) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(kind)) if path.is_file()]


def _convert_link(path: str, text: str, target: str, anchor: str) -> str:
    """Return a link as it must be written in the page made from ``path``."""
    linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if "://" in target or not (ROOT / linked).exists():
        return f"[{text}]({target}{anchor})"  # another site, or a mistake that MkDocs reports
    here, there = _place(path), _place(linked)
    if here != there and _strip_language(here) == _strip_language(there):
        # The same page in the other language: for MkDocs, a page of another site.
        return f'<a href="{_relative(_url(there), _url(here))}">{text}</a>'
    return f"[{text}]({_relative(_strip_language(there), here)}{anchor})"


def _place(path: str) -> str:
    """Return where a file of the repository is on the site, with the suffix of its language."""
    return PAGES.get(path, path.removeprefix("docs/"))


def _strip_language(place: str) -> str:
    return place.removesuffix(_CHINESE) + ".md" if place.endswith(_CHINESE) else place


def _url(place: str) -> str:
    page = posixpath.splitext(_strip_language(place))[0] + ".html"
    return f"zh/{page}" if place.endswith(_CHINESE) else page


def _relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")
