"""``baichuan2 fetch``: fetch a model, verify it again, or show which there are.

Not here: how (``baichuan2_tpu.fetch``).
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.terminal import byte_bar, notice, write_result
from baichuan2_tpu.errors import FetchError, RequestError

if TYPE_CHECKING:
    from baichuan2_tpu.fetch import DownloadProgress

__all__ = ["fetch"]


class SourceChoice(str, Enum):
    """Hubs that hold the float checkpoints."""

    HUGGINGFACE = "huggingface"
    MODELSCOPE = "modelscope"


@dataclass(frozen=True, slots=True)
class _Wish:
    """The options that were given; None where one was not."""

    source: SourceChoice | None
    folder: Path | None
    connections: int | None
    revision: str | None


def fetch(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A name that --list shows.")] = None,
    *,
    source: Annotated[
        SourceChoice | None,
        typer.Option("--source", help="Hub of a float checkpoint.", show_default="huggingface"),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Folder to fetch into.", show_default="in the user's cache"),
    ] = None,
    connections: Annotated[
        int | None,
        typer.Option("--connections", min=1, max=32, help="Parallel connections.", show_default="4"),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Branch, tag or commit on the hub.", show_default="the main branch"),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Only compare the fetched files with their sha256."),
    ] = False,
    is_list: Annotated[
        bool, typer.Option("--list", help="List the known names, and which are fetched.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Fetch the model NAME and print its folder.

    If it is interrupted, the same command continues; damaged files are replaced. Read from the environment:
    HF_ENDPOINT, HF_TOKEN, MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN, HTTPS_PROXY.
    """
    wish = _Wish(source, None if to is None else to.expanduser(), connections, revision)
    if is_list:
        if name is not None or verify or wish != _Wish(None, None, None, None):
            raise typer.BadParameter("--list goes only with --json")
        _show_list(as_json=as_json)
        return
    if name is None:
        raise typer.BadParameter("give NAME, or --list to see the names")
    _check_wish(name, wish)
    if verify:
        if source or connections:
            raise typer.BadParameter("--verify asks no hub: --source and --connections do not apply to it")
        _verify(name, wish, as_json=as_json)
        return
    try:
        with byte_bar("fetching") as progress:
            path = _fetch(name, wish, progress)
    except KeyboardInterrupt:
        notice("stopped; what came is kept, and the same command continues")
        raise
    _show_result(name, path, as_json=as_json)


def _check_wish(name: str, wish: _Wish) -> None:
    """Refuse names that nobody knows, and options that would do nothing."""
    from baichuan2_tpu.fetch import HUB_MODELS, VENDOR_MODELS

    if name not in ("demo", *HUB_MODELS, *VENDOR_MODELS):
        names = ", ".join(("demo", *HUB_MODELS, *VENDOR_MODELS))
        raise RequestError(f"{name!r} is not a model that can be fetched; choose one of {names}")
    if wish.revision is not None and not wish.revision.strip():
        raise typer.BadParameter("--revision is empty: give a branch, tag or commit, or leave it out")
    if name not in HUB_MODELS and (wish.source or wish.connections or wish.revision):
        comes = "by pip" if name == "demo" else "from the vendor, by dfss"
        raise typer.BadParameter(
            f"{name} comes {comes}: --source, --connections and --revision do not apply to it"
        )


def _fetch(name: str, wish: _Wish, progress: DownloadProgress | None) -> Path:
    """Fetch a model and return its folder; of the demo, its file."""
    from baichuan2_tpu import fetch as fetching
    from baichuan2_tpu.fetch.models import FetchSettings, fetch_model
    from baichuan2_tpu.fetch.transfer.download import DownloadSettings
    from baichuan2_tpu.fetch.vendor import fetch_vendor_model

    if name == "demo":
        return fetching.fetch(fetching.DEMO, _folder(name, wish), notice)
    if name in fetching.VENDOR_MODELS:
        return fetch_vendor_model(name, wish.folder, notice=notice, progress=progress)
    settings = FetchSettings(
        source="huggingface" if wish.source is None else wish.source.value,
        revision=wish.revision,
        folder=wish.folder,
        download=DownloadSettings() if wish.connections is None else DownloadSettings(wish.connections),
    )
    return fetch_model(name, settings, notice=notice, progress=progress)


def _folder(name: str, wish: _Wish) -> Path:
    """Return where a model is, or will be."""
    from baichuan2_tpu.fetch import cache_folder, fetched_folder

    usual = cache_folder() / "downloads" if name == "demo" else fetched_folder(name, wish.revision)
    return usual if wish.folder is None else wish.folder


def _verify(name: str, wish: _Wish, *, as_json: bool) -> None:
    """Compare every file with its record and show what is wrong.

    Raises: FetchError after that, or where nothing was fetched; RequestError for another model's folder.
    """
    folder = _folder(name, wish)
    damage = _find_damage(name, folder, wish)
    if as_json:
        write_result(json.dumps({"name": name, "path": str(folder), "damage": damage}) + "\n")
    for file, what in damage.items():
        notice(f"{folder / file}: {what}")
    if damage:
        raise FetchError(
            f"{name} is damaged in {len(damage)} file(s); repair it with: {_repair_line(name, folder, wish)}"
        )
    if not as_json:
        write_result(f"{folder}\n")


def _find_damage(name: str, folder: Path, wish: _Wish) -> dict[str, str]:
    from baichuan2_tpu.fetch import DEMO
    from baichuan2_tpu.fetch.verify import check_model, find_damage

    if name != "demo":
        # A branch's name is not recorded, its commit is; the usual folder has the name in its own.
        check_model(folder, name, wish.revision if wish.folder else None)
        return find_damage(folder)
    is_right = DEMO.is_at(folder / DEMO.file_name)
    return {} if is_right else {DEMO.file_name: "is missing, cut short or changed"}


def _repair_line(name: str, folder: Path, wish: _Wish) -> str:
    """Return the command that repairs a folder from where it came, as a shell reads it."""
    from baichuan2_tpu.fetch.record import Record

    record = Record.read(folder)
    is_from_elsewhere = record is not None and record.source == SourceChoice.MODELSCOPE.value
    words = ["baichuan2", "fetch", name]
    words += ["--source", SourceChoice.MODELSCOPE.value] if is_from_elsewhere else []
    words += ["--revision", wish.revision] if wish.revision else []
    words += ["--to", str(wish.folder)] if wish.folder else []
    return shlex.join(words)


def _show_result(name: str, path: Path, *, as_json: bool) -> None:
    from baichuan2_tpu.fetch.record import Record

    if not as_json:
        write_result(f"{path}\n")
        return
    facts: dict[str, object] = {"name": name, "path": str(path)}
    record = Record.read(path)
    if record is not None:
        facts |= {"source": record.source, "repository": record.repository, "revision": record.revision}
        facts["files"] = {
            file: {"nbytes": known.nbytes, "sha256": known.sha256} for file, known in record.files.items()
        }
    write_result(json.dumps(facts) + "\n")


def _show_list(*, as_json: bool) -> None:
    """Show every name, what it is, and where it lies when it is whole."""
    from baichuan2_tpu.fetch import DEMO, cache_folder, find_fetched
    from baichuan2_tpu.resolve import KNOWN_MODELS

    demo = cache_folder() / "downloads" / DEMO.file_name
    places = {name: find_fetched(name) for name in KNOWN_MODELS if name != "demo"}
    places["demo"] = demo if demo.is_file() else None
    if as_json:
        rows = [
            {"name": name, "description": model.description, "path": str(places[name] or "") or None}
            for name, model in KNOWN_MODELS.items()
        ]
        write_result(json.dumps({"models": rows}) + "\n")
        return
    for name, model in KNOWN_MODELS.items():
        state = f"  [{places[name]}]" if places[name] else ""
        write_result(f"{name:<26}{model.description}{state}\n")
