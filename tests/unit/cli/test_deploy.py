"""The files in deploy/ name options, users and paths that exist; what starts a server there can start one."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from running.cli_command import Run

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
UNIT = DEPLOY / "baichuan2.service"


def serve_options(run: Run) -> set[str]:
    return set(re.findall(r"--[a-z-]+", run("serve", "--help").out))


def command_lines() -> dict[str, list[str]]:
    """Return the words behind ``baichuan2`` in every file that has some."""
    start = re.search(r"^ExecStart=\S+ (.*)$", UNIT.read_text(), re.MULTILINE)
    image = re.search(r"^CMD (\[\"serve.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert start is not None
    assert image is not None
    soc = yaml.safe_load((DEPLOY / "compose.soc.yaml").read_text())["services"]["baichuan2"]
    return {
        "unit": shlex.split(start.group(1)),
        "image": yaml.safe_load(image.group(1)),
        "soc": [str(word) for word in soc["command"]],
    }


@pytest.mark.parametrize("name", ["unit", "image", "soc"])
def test_a_command_line_uses_options_that_serve_has(name: str, run: Run) -> None:
    words = command_lines()[name]
    assert words[0] == "serve"
    used = {word for word in words if word.startswith("--")}
    assert used
    assert used <= serve_options(run)


def test_the_supervisor_waits_longer_than_the_server_gives_its_answers() -> None:
    words = command_lines()["unit"]
    grace_s = int(words[words.index("--grace") + 1])
    stop = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert stop is not None
    assert int(stop.group(1)) > grace_s + 5


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="install systemd, which checks units")
def test_systemd_takes_the_unit_with_its_part_for_a_tpu(tmp_path: Path) -> None:
    parts = tmp_path / "baichuan2.service.d"
    parts.mkdir()
    shutil.copy(DEPLOY / "baichuan2.service.d" / "tpu.conf", parts)
    # The command is installed on no machine that runs this test.
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE)
    (tmp_path / "baichuan2.service").write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "baichuan2.service")]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["compose.pc.yaml", "compose.soc.yaml"])
def test_a_container_is_open_on_this_machine_alone_and_has_no_rights(name: str) -> None:
    service = yaml.safe_load((DEPLOY / name).read_text())["services"]["baichuan2"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert (DEPLOY.parent / service["build"]["dockerfile"]).is_file()
