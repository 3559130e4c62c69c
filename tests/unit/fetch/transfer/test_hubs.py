"""What a hub says is data of a stranger: names, sizes and digests are checked before anything is fetched."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch.models import FetchSettings, fetch_model
from baichuan2_tpu.fetch.transfer.hubs import HuggingFace, ModelScope, SourceName, open_hub
from doubles.fault_server import COMMIT, MODEL, WEIGHTS, FaultyHub, Rows

SOURCES = pytest.mark.parametrize("source", ["huggingface", "modelscope"])


def fetch(settings: FetchSettings, source: str) -> Path:
    return fetch_model(MODEL, replace(settings, source=source), notice=lambda _: None)  # pyright: ignore[reportArgumentType]


def with_row(**change: object) -> Callable[[Rows], Rows]:
    """Return a change of a listing that adds a row like the last one; keys are of both hubs."""

    def tamper(rows: Rows) -> Rows:
        row = dict(rows[-1])
        for key, value in change.items():
            for name in (key, key.capitalize()):
                if name in row:
                    row[name] = value
        return [*rows, row]

    return tamper


@SOURCES
@pytest.mark.parametrize(
    "name",
    [
        "../../evil.bin",
        "..",
        ".",
        "",
        "/etc/passwd",
        "//host/share",
        "a/../../evil",
        "./config.json",
        "a//b",
        "dir\\..\\evil",
        "line\nfeed.bin",
        "\x1b[2J.bin",
        "nul\0.bin",
        "\u202etxt.bin",
        "long" * 64 + ".bin",
        None,
        7,
    ],
)
def test_name_that_leads_elsewhere_stops_everything(
    hub: FaultyHub, settings: FetchSettings, tmp_path: Path, source: str, name: object
) -> None:
    hub.tamper = with_row(path=name)
    with pytest.raises(FetchError, match="which is not allowed; do not use this hub"):
        fetch(settings, source)
    assert [seen for seen in hub.requests if WEIGHTS in seen.path] == []
    assert list(tmp_path.iterdir()) == []


@SOURCES
@pytest.mark.parametrize("size", [-1, 1 << 41, "12", 1.5, True, None])
def test_size_that_cannot_be_is_refused(
    hub: FaultyHub, settings: FetchSettings, source: str, size: object
) -> None:
    def tamper(rows: Rows) -> Rows:
        for row in (rows[-1], rows[-1].get("lfs", {})):
            row.update({key: size for key in ("size", "Size") if key in row})
        return rows

    hub.tamper = tamper
    with pytest.raises(FetchError, match=rf"lists {WEIGHTS} with -?\d+ bytes"):
        fetch(settings, source)


@SOURCES
@pytest.mark.parametrize("digest", ["", "0" * 63, "g" * 64, None])
def test_file_without_a_digest_is_refused(
    hub: FaultyHub, settings: FetchSettings, source: str, digest: object
) -> None:
    def tamper(rows: Rows) -> Rows:
        rows[-1].update({"Sha256": digest} if source == "modelscope" else {"lfs": {"oid": digest, "size": 1}})
        return rows

    hub.tamper = tamper
    with pytest.raises(FetchError, match=f"lists {WEIGHTS} with the malformed digest sha256 "):
        fetch(settings, source)


@SOURCES
def test_file_that_nobody_wants_may_lack_size_and_digest(
    hub: FaultyHub, settings: FetchSettings, source: str
) -> None:
    hub.tamper = lambda rows: [
        *rows,
        {"type": "file", "path": "licence.pdf", "Type": "blob", "Path": "licence.pdf"},
    ]
    assert (fetch(settings, source) / WEIGHTS).is_file()


def test_digest_in_capitals_is_the_same(hub: FaultyHub, settings: FetchSettings) -> None:
    hub.tamper = lambda rows: [row | {"Sha256": row.get("Sha256", "").upper()} for row in rows]
    assert (fetch(settings, "modelscope") / WEIGHTS).is_file()


@SOURCES
def test_name_that_comes_twice_is_refused(hub: FaultyHub, settings: FetchSettings, source: str) -> None:
    hub.tamper = with_row()
    with pytest.raises(FetchError, match=f"lists {WEIGHTS} twice"):
        fetch(settings, source)


@SOURCES
def test_listing_of_a_huge_file_stops_at_the_disk(
    hub: FaultyHub, settings: FetchSettings, folder: Path, source: str
) -> None:
    def tamper(rows: Rows) -> Rows:
        for row in (rows[-1], rows[-1].get("lfs", {})):
            row.update({key: 1 << 40 for key in ("size", "Size") if key in row})
        return rows

    hub.tamper = tamper
    with pytest.raises(FetchError, match=r"1099\.5 GB are still to be fetched, the disk has"):
        fetch(settings, source)
    assert not (folder / "config.json").exists()


@SOURCES
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("html", "answers with something else than JSON"),
        ("endless", "sends more than 8388608 bytes"),
        ("401", "status 401"),
        ("403", "accept its licence"),
        ("404", "for the revisions and files there are"),
        ("400", "try again later, or from another --source"),
    ],
)
def test_listing_that_fails_is_one_line_with_the_next_step(
    hub: FaultyHub, settings: FetchSettings, fault: str, said: str, source: str
) -> None:
    hub.listing_faults.append(fault)
    with pytest.raises(FetchError, match=said) as caught:
        fetch(settings, source)
    assert "\n" not in str(caught.value)
    assert settings.folder is not None
    assert not settings.folder.exists()


@SOURCES
def test_listing_is_asked_for_again_after_a_passing_fault(
    hub: FaultyHub, settings: FetchSettings, source: str
) -> None:
    hub.listing_faults.extend(["503", "429 1"])
    assert (fetch(settings, source) / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


@pytest.mark.parametrize(
    "answer", [[], {"Code": 10010205001, "Message": "no such model"}, {"Code": 200, "Data": {}}]
)
def test_modelscope_can_refuse_with_status_200(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    monkeypatch.setattr("baichuan2_tpu.fetch.transfer.hubs._get", lambda *_: answer)
    with pytest.raises(
        FetchError, match=r"refused: 'no such model'|lists no files|something else than an object"
    ):
        fetch(settings, "modelscope")


@pytest.mark.parametrize("answer", [[], {}, {"sha": None}, {"sha": "../main"}])
def test_revision_without_a_commit_is_refused(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    monkeypatch.setattr("baichuan2_tpu.fetch.transfer.hubs._get", lambda *_: answer)
    with pytest.raises(FetchError, match=r"names no commit for 'main'|something else than an object"):
        fetch(settings, "huggingface")


def test_revision_that_is_asked_for_is_quoted(hub: FaultyHub, settings: FetchSettings) -> None:
    fetch(replace(settings, revision="refs/pr/3"), "huggingface")
    assert hub.requests[0].path == "/api/models/baichuan-inc/Baichuan2-7B-Base/revision/refs%2Fpr%2F3"
    assert hub.requests[1].path == f"/api/models/baichuan-inc/Baichuan2-7B-Base/tree/{COMMIT}"


def test_environment_names_endpoints_and_tokens(tmp_path: Path) -> None:
    assert open_hub("huggingface", {"HF_HOME": str(tmp_path)}) == HuggingFace("https://huggingface.co", None)
    assert open_hub("modelscope", {"MODELSCOPE_API_TOKEN": "\n"}) == ModelScope(
        "https://www.modelscope.cn", None
    )
    mirror = open_hub("huggingface", {"HF_ENDPOINT": "https://mirror/", "HF_TOKEN": " hf_a\n"})
    assert mirror == HuggingFace("https://mirror", "hf_a")
    old = open_hub("huggingface", {"HUGGING_FACE_HUB_TOKEN": "hf_b"})
    assert old.headers == {"Authorization": "Bearer hf_b"}
    near = open_hub("modelscope", {"MODELSCOPE_DOMAIN": "modelscope.ai", "MODELSCOPE_API_TOKEN": "ms"})
    assert near == ModelScope("https://modelscope.ai", "ms")
    assert near.headers == {"Authorization": "Bearer ms", "Cookie": "m_session_id=ms"}


TOKENS = pytest.mark.parametrize(
    ("source", "variable"),
    [
        ("huggingface", "HF_TOKEN"),
        ("huggingface", "HUGGING_FACE_HUB_TOKEN"),
        ("modelscope", "MODELSCOPE_API_TOKEN"),
    ],
)


@TOKENS
def test_token_of_a_file_with_windows_line_ends_is_taken(source: SourceName, variable: str) -> None:
    assert "Bearer secret" in open_hub(source, {variable: " secret\r\n"}).headers["Authorization"]


@TOKENS
@pytest.mark.parametrize("token", ["SECRET\rSECRET", "SECRET SECRET", "SECRÉT", "SECRET\0"])
def test_token_that_no_header_carries_is_refused_and_not_shown(
    source: SourceName, variable: str, token: str
) -> None:
    """A token of another alphabet ended as an internal error, one with a line feed was quoted."""
    with pytest.raises(
        FetchError, match=f"token of {variable} has {len(token)} characters, .*; copy it again"
    ) as caught:
        open_hub(source, {variable: token})
    assert "SECR" not in str(caught.value)


def test_kept_token_that_no_header_carries_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_\u00e9")
    with pytest.raises(FetchError, match=f"token of {tmp_path / 'token'} has 4 characters"):
        open_hub("huggingface", {"HF_HOME": str(tmp_path)})


@pytest.mark.parametrize("value", ["1", "true", "ON", "yes"])
@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_environment_can_forbid_the_network(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    fetch(settings, "huggingface")
    hub.requests.clear()
    monkeypatch.setenv(name, value)
    assert fetch(settings, "huggingface") == settings.folder
    (settings.folder / WEIGHTS).unlink()  # pyright: ignore[reportOptionalOperand]
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE forbids fetching it; unset it"):
        fetch(settings, "huggingface")
    assert hub.requests == []


@pytest.mark.parametrize(("text", "token"), [(" hf_kept \n", "hf_kept"), ("", None), ("\n", None)])
def test_token_that_was_kept_by_the_hubs_own_tool_is_used(
    tmp_path: Path, text: str, token: str | None
) -> None:
    (tmp_path / "token").write_text(text)
    for environment in ({"HF_HOME": str(tmp_path)}, {"HF_TOKEN_PATH": str(tmp_path / "token")}):
        assert open_hub("huggingface", environment) == HuggingFace("https://huggingface.co", token)


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_ENDPOINT": "https://mirror"},
        {"HF_ENDPOINT": "http://huggingface.co"},
        {"HF_ENDPOINT": "https://huggingface.co.example"},
        {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"},
    ],
)
def test_kept_token_goes_to_hugging_face_alone(tmp_path: Path, environment: dict[str, str]) -> None:
    """A mirror was sent the token that the user had given to Hugging Face."""
    (tmp_path / "token").write_text("hf_kept")
    kept = {"HF_HOME": str(tmp_path)}
    assert open_hub("huggingface", kept | {"HF_ENDPOINT": "https://huggingface.co/"}).headers
    assert open_hub("huggingface", kept | environment).headers == {}
    given = open_hub("huggingface", kept | environment | {"HF_TOKEN": "hf_given"})
    assert given.headers == {"Authorization": "Bearer hf_given"}


@pytest.mark.parametrize(
    ("source", "variable"), [("huggingface", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_ENDPOINT")]
)
def test_login_of_a_mirror_is_sent_and_never_shown(
    hub: FaultyHub,
    settings: FetchSettings,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, hub.hub_url.replace("://", "://me:se%40cret@"))
    notices: list[str] = []
    fetch_model(MODEL, replace(settings, source=source), notice=notices.append)  # pyright: ignore[reportArgumentType]
    assert {seen.headers["authorization"] for seen in hub.requests if seen.server == "hub"} == {
        "Basic bWU6c2VAY3JldA=="
    }
    assert not any("authorization" in seen.headers for seen in hub.requests if seen.server == "cdn")
    hub.listing_faults.append("404")
    with pytest.raises(FetchError) as caught:
        fetch(replace(settings, revision="v2"), source)
    assert hub.hub_url in str(caught.value)
    assert "cret" not in f"{caught.value} {notices}"


def test_damaged_token_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    assert open_hub("huggingface", {"HF_HOME": str(tmp_path)}).headers == {}
