"""The two hubs that hold Baichuan2: what a repository lists, the address of a file in it, the user's tokens.

A listing is data of somebody else: a name that could lead out of a folder is refused. A token comes from the
environment, or from where a hub's own tool has kept it, and its value is in no message.
Not here: which files are wanted (``models``), moving bytes (``download``).
Source: huggingface_hub 2.4.0 (``hf_api.py`` for /api/models, ``constants.py`` for the environment,
``utils/_auth.py``); modelscope 1.x (``hub/api.py``, ``hub/file_download.py``, ``hub/utils/utils.py``).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, cast
from urllib.parse import quote, unquote, urlencode

import httpx

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch.transfer.client import check_status, mapped_errors, read_limited
from baichuan2_tpu.files import Digest

__all__ = [
    "HUGGINGFACE",
    "TRUE_WORDS",
    "Hub",
    "HuggingFace",
    "Listing",
    "ModelScope",
    "RemoteFile",
    "SourceName",
    "huggingface_token",
    "modelscope_token",
    "open_hub",
]

SourceName = Literal["huggingface", "modelscope"]
_LISTING_LIMIT_BYTES = 8 << 20
_NAME_LIMIT = 255  # bytes of a file name, of every file system in use

HUGGINGFACE = "https://huggingface.co"
TRUE_WORDS = frozenset({"1", "ON", "YES", "TRUE"})
"""What a variable of Hugging Face is set to when it holds, in capitals."""
_FORM = re.compile(r"[!-~]+")
"""Printable ASCII without spaces: what a header can carry, and all that tokens are made of."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as a hub lists it, in the root of its repository; ``nbytes`` is -1 where it says no number."""

    name: str
    nbytes: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Listing:
    """The files in the root of a repository at a revision; a commit, where the hub can name one."""

    revision: str
    files: Mapping[str, RemoteFile]


class Hub(Protocol):
    """What is different from hub to hub."""

    @property
    def name(self) -> SourceName:
        """What a user calls it."""
        ...

    @property
    def is_offline(self) -> bool:
        """Whether the user wants nothing to be asked for."""
        ...

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request, with the user's token if there is one."""
        ...

    @property
    def default_revision(self) -> str:
        """The branch that is meant when nobody says."""
        ...

    def advice(self, repository: str) -> Mapping[int, str]:
        """Say what to do about a status, by its number."""
        ...

    def list_files(self, client: httpx.Client, repository: str, revision: str) -> Listing:
        """Ask for the files of a repository, in one attempt.

        Raises: Fault when another attempt may succeed; FetchError.
        """
        ...

    def file_url(self, repository: str, revision: str, name: str) -> str:
        """Return where a file can be asked for; the answer may be a redirect."""
        ...


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """Hugging Face, or a mirror of it (HF_ENDPOINT)."""

    endpoint: str
    token: str | None = field(repr=False)
    is_offline: bool = False
    name: SourceName = "huggingface"
    default_revision: str = "main"
    login: str | None = field(default=None, repr=False)
    """User and password of the endpoint itself, which go before a token where both want one header."""

    @property
    def headers(self) -> dict[str, str]:
        """The token, as Hugging Face wants it, or the login of a mirror."""
        if self.login:
            return {"Authorization": _basic(self.login)}
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def advice(self, repository: str) -> Mapping[int, str]:
        """Say what to do about a status, by its number."""
        page = f"{self.endpoint}/{repository}"
        has_token = "the one there is was refused" if self.token else "none was sent"
        return {
            401: f"a token is needed, {has_token}: make one at {self.endpoint}/settings/tokens and set "
            f"HF_TOKEN, or take --source modelscope",
            403: f"open {page} with the account of the token, accept its licence there, and try again",
            404: f"see {page} for the revisions and files there are, or take --source modelscope",
        }

    def list_files(self, client: httpx.Client, repository: str, revision: str) -> Listing:
        """Ask for the commit of the revision first, so that all files are of one commit."""
        about = f"{self.endpoint}/api/models/{repository}"
        advice = self.advice(repository)
        info = _object(
            _get(client, f"{about}/revision/{quote(revision, safe='')}", self.headers, advice), about
        )
        commit = info.get("sha")
        if not isinstance(commit, str) or not commit.isalnum():
            raise FetchError(f"{about}: names no commit for {revision!r}; take --source modelscope")
        rows = _get(client, f"{about}/tree/{commit}", self.headers, advice)
        files = [_huggingface_file(row, about) for row in _rows(rows, about) if row.get("type") == "file"]
        return _make_listing(commit, files, about)

    def file_url(self, repository: str, revision: str, name: str) -> str:
        """Return the address that counts a download and redirects to where large files lie."""
        return f"{self.endpoint}/{repository}/resolve/{quote(revision, safe='')}/{quote(name)}"


@dataclass(frozen=True, slots=True)
class ModelScope:
    """ModelScope, which is near to users in China."""

    endpoint: str
    token: str | None = field(repr=False)
    is_offline: bool = False
    name: SourceName = "modelscope"
    default_revision: str = "master"
    login: str | None = field(default=None, repr=False)
    """User and password of the endpoint itself, which go before a token where both want one header."""

    @property
    def headers(self) -> dict[str, str]:
        """The token in both forms that servers of ModelScope take."""
        cookie = {"Cookie": f"m_session_id={self.token}"} if self.token else {}
        if self.login:
            return {"Authorization": _basic(self.login), **cookie}
        return {"Authorization": f"Bearer {self.token}", **cookie} if self.token else {}

    def advice(self, repository: str) -> Mapping[int, str]:
        """Say what to do about a status, by its number."""
        page = f"{self.endpoint}/models/{repository}"
        login = "make a token at https://modelscope.cn/my/myaccesstoken and set MODELSCOPE_API_TOKEN"
        return {
            401: f"{login}, or take --source huggingface",
            403: f"open {page} with your account, accept its licence, {login}",
            404: f"see {page} for the revisions and files there are, or take --source huggingface",
        }

    def list_files(self, client: httpx.Client, repository: str, revision: str) -> Listing:
        """Ask for the files; every one comes with its sha256."""
        about = f"{self.endpoint}/api/v1/models/{repository}"
        query = urlencode({"Revision": revision, "Recursive": "true"})
        answer = _object(
            _get(client, f"{about}/repo/files?{query}", self.headers, self.advice(repository)), about
        )
        data = answer.get("Data")
        if answer.get("Code") != 200 or not isinstance(data, dict):
            raise FetchError(f"{about}: refused: {answer.get('Message')!r}; take --source huggingface")
        rows = _rows(cast("dict[str, object]", data).get("Files"), about)
        files = [_modelscope_file(row, about) for row in rows if row.get("Type") != "tree"]
        return _make_listing(revision, files, about)

    def file_url(self, repository: str, revision: str, name: str) -> str:
        """Return the address that redirects to where large files lie."""
        query = urlencode({"Revision": revision, "FilePath": name})
        return f"{self.endpoint}/api/v1/models/{repository}/repo?{query}"


def open_hub(name: SourceName, environment: Mapping[str, str]) -> Hub:
    """Return a hub with the endpoint and the token of the user's environment.

    Variables: HF_ENDPOINT, HF_TOKEN, HUGGING_FACE_HUB_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_OFFLINE,
    HF_HUB_DISABLE_IMPLICIT_TOKEN; MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN, MODELSCOPE_API_TOKEN.
    HF_HUB_OFFLINE holds for both.
    Raises: FetchError for a token that cannot be sent.
    """
    offline = environment.get("HF_HUB_OFFLINE") or environment.get("TRANSFORMERS_OFFLINE") or ""
    is_offline = offline.upper() in TRUE_WORDS
    if name == "modelscope":
        domain = environment.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
        endpoint = environment.get("MODELSCOPE_ENDPOINT") or f"https://{domain}"
        endpoint, login = _split_login(endpoint.rstrip("/"))
        return ModelScope(endpoint, modelscope_token(environment), is_offline, login=login)
    endpoint, login = _split_login((environment.get("HF_ENDPOINT") or HUGGINGFACE).rstrip("/"))
    return HuggingFace(endpoint, huggingface_token(environment, endpoint), is_offline, login=login)


def _split_login(endpoint: str) -> tuple[str, str | None]:
    """Take user:password@ out of an endpoint, which messages show."""
    scheme, separator, rest = endpoint.partition("://")
    authority, slash, path = rest.partition("/")
    login, at, host = authority.rpartition("@")
    return f"{scheme}{separator}{host}{slash}{path}", unquote(login) if at else None


def _basic(login: str) -> str:
    """Return what a server that asks for a user and a password is sent. Source: RFC 7617."""
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def _get(client: httpx.Client, url: str, headers: Mapping[str, str], advice: Mapping[int, str]) -> object:
    """Return the JSON value that a URL answers with."""
    with mapped_errors(url), client.stream("GET", url, headers=headers) as response:
        check_status(response, url, advice)
        body = read_limited(response, _LISTING_LIMIT_BYTES)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FetchError(
            f"{url}: answers with something else than JSON ({error}); is it the address of a hub?"
        ) from error


def _object(value: object, about: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FetchError(f"{about}: answers with something else than an object; is it the address of a hub?")
    return cast("dict[str, Any]", value)


def _rows(value: object, about: str) -> list[dict[str, Any]]:
    rows = cast("list[object]", value) if isinstance(value, list) else None
    if rows is None or not all(isinstance(row, dict) for row in rows):
        raise FetchError(f"{about}: lists no files; is it the address of a hub?")
    return cast("list[dict[str, Any]]", rows)


def _huggingface_file(row: Mapping[str, Any], about: str) -> RemoteFile | None:
    """Read a row of a tree: large files have the sha256 of their content, small ones git's object name."""
    large = row.get("lfs")
    if isinstance(large, dict):
        entry = cast("dict[str, Any]", large)
        return _remote_file(
            row.get("path"), entry.get("size"), Digest("sha256", str(entry.get("oid"))), about
        )
    return _remote_file(row.get("path"), row.get("size"), Digest("git", str(row.get("oid"))), about)


def _modelscope_file(row: Mapping[str, Any], about: str) -> RemoteFile | None:
    return _remote_file(
        row.get("Path"), row.get("Size"), Digest("sha256", str(row.get("Sha256")).lower()), about
    )


def _remote_file(name: object, nbytes: object, digest: Digest, about: str) -> RemoteFile | None:
    """Read a row of a listing; None for a file in a folder, which nothing here needs.

    Raises: FetchError for a name that leads elsewhere.
    """
    if not isinstance(name, str) or not _is_safe(name):
        raise FetchError(
            f"{about}: lists the name {str(name)[:80]!r}, which is not allowed; do not use this hub"
        )
    is_counted = isinstance(nbytes, int) and not isinstance(nbytes, bool)
    size = cast("int", nbytes) if is_counted else -1
    return None if "/" in name else RemoteFile(name, size, digest)


def _is_safe(name: str) -> bool:
    """Tell whether a name stays in its folder and can be a file's."""
    path = PurePosixPath(name)
    parts_fit = all(len(part.encode("utf-8", "replace")) <= _NAME_LIMIT for part in path.parts)
    is_plain = name.isprintable() and "\\" not in name and str(path) == name
    return is_plain and parts_fit and not path.is_absolute() and ".." not in path.parts and name != "."


def _make_listing(revision: str, files: list[RemoteFile | None], about: str) -> Listing:
    """Put the files of the root together; a name that comes twice is refused."""
    by_name: dict[str, RemoteFile] = {}
    for file in files:
        if file is None:
            continue
        if file.name in by_name:
            raise FetchError(f"{about}: lists {file.name} twice; take another --source")
        by_name[file.name] = file
    return Listing(revision, by_name)


def huggingface_token(environment: Mapping[str, str], endpoint: str) -> str | None:
    """Return the token of the environment; for Hugging Face itself else the one ``hf auth login`` has kept.

    A kept token was given to Hugging Face alone: no mirror gets it. HF_HUB_DISABLE_IMPLICIT_TOKEN forbids it
    wholly; a token in HF_TOKEN is sent wherever HF_ENDPOINT leads.
    Raises: FetchError naming the variable or the file of a token that cannot be sent.
    """
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = _check_token(environment.get(variable, ""), variable)
        if token:
            return token
    is_forbidden = environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in TRUE_WORDS
    if is_forbidden or endpoint.lower() != HUGGINGFACE:
        return None
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{cache}/huggingface"
    path = Path(environment.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    try:
        return _check_token(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError):
        return None


def modelscope_token(environment: Mapping[str, str]) -> str | None:
    """Return the token of the environment.

    Raises: FetchError naming the variable of a token that cannot be sent.
    """
    return _check_token(environment.get("MODELSCOPE_API_TOKEN", ""), "MODELSCOPE_API_TOKEN")


def _check_token(text: str, where: str) -> str | None:
    """Return a token without the white space around it, None where nothing is left."""
    token = text.strip()
    if not token:
        return None
    if not _FORM.fullmatch(token):
        raise FetchError(
            f"the token of {where} has {len(token)} characters, and one of them is a space or no printable "
            "ASCII, which no token has; copy it again from the page where it was made"
        )
    return token
