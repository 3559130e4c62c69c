"""Bundles that TPU-MLIR really compiles: what is in them, and that no interruption changes a byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from baichuan2_tpu.bmodel.weights import StageLayout, read_stages
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.compile import assemble, driver
from baichuan2_tpu.compile.driver import BuildSettings, CompileEvent, Progress, compile_bundle
from baichuan2_tpu.compile.net_weights import Arrays, Source
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.compile.tpuc import Compiler
from baichuan2_tpu.errors import ArtifactError, CompileError
from baichuan2_tpu.manifest import MANIFEST_NAME, Manifest, Stage
from baichuan2_tpu.toolchain import Toolchain
from models.tiny_bundle import TINY_SETTINGS, TinyBundles, write_tiny_checkpoint

SMALL = replace(
    TINY_SETTINGS,
    context=64,
    rows=64,
    stages=(Stage(1, 32), Stage(1, 64), Stage(16, 64)),
    head_rows=(1, 4),
)
"""Two nets of two layers and of one, with three stages each, and two of the head."""
STAGES = 2 * 3 + 2
BUILD = """
import sys
from pathlib import Path
from baichuan2_tpu.compile.driver import BuildSettings, compile_bundle
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.toolchain import Toolchain
settings = CompileSettings(
    bits=4, head="w8", context=64, rows=64, stages=(Stage(1, 32), Stage(1, 64), Stage(16, 64)),
    head_rows=(1, 4), layers_per_net=2,
)
toolchain = Toolchain(Path(sys.argv[3]), sys.argv[4])
compile_bundle(Path(sys.argv[1]), Path(sys.argv[2]), settings, BuildSettings(toolchain))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", 4)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, toolchain: Toolchain) -> Path:
    """A bundle that was built at one go."""
    folder = checkpoint.with_name("whole")
    compile_bundle(checkpoint, folder, SMALL, BuildSettings(toolchain))
    return folder


class Make:
    """Builds ``out`` from the tiny checkpoint."""

    def __init__(self, checkpoint: Path, out: Path, toolchain: Toolchain) -> None:
        self.checkpoint = checkpoint
        self.out = out
        self.partial = out.with_name(f"{out.name}.partial")
        self.toolchain = toolchain

    def __call__(
        self,
        settings: CompileSettings = SMALL,
        *,
        jobs: int = 2,
        keeps_work: bool = False,
        progress: Progress | None = None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        build = BuildSettings(self.toolchain, jobs, keeps_work)
        compile_bundle(self.checkpoint, self.out, settings, build, progress=progress, notice=notice)


@pytest.fixture
def make(checkpoint: Path, tmp_path: Path, toolchain: Toolchain) -> Make:
    return Make(checkpoint, tmp_path / "out", toolchain)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bundle_holds_what_its_manifest_says(tiny_bundle: TinyBundles, bits: Literal[4, 8]) -> None:
    made = tiny_bundle(bits)
    manifest = Manifest.read(made.folder)
    manifest.verify(made.folder)
    assert set(manifest.files) == {path.name for path in made.folder.iterdir()} - {"manifest.json"}
    assert {"config.json", "generation_config.json", "tokenizer.model"} < set(manifest.files)
    config = manifest.model
    assert (manifest.bits, manifest.stages, manifest.chip) == (bits, TINY_SETTINGS.stages, "bm1684x")
    assert (manifest.context, manifest.rows, manifest.head_rows) == (256, 512, (1, 4, 16))
    assert (manifest.layers_per_net, manifest.group_size) == (2, 64)
    costs = [(cost.net, cost.stage) for cost in manifest.costs]
    blocks = [(net, stage) for net in manifest.block_nets for stage in TINY_SETTINGS.stages[::-1]]
    assert costs == [*blocks, *(("lm_head", (rows, 0)) for rows in (16, 4, 1))]
    history = 2 * 2 * config.kv_heads * config.head_size * manifest.rows * config.layers
    assert manifest.device_bytes > history
    assert not made.folder.with_name(f"{made.folder.name}.partial").exists()


def test_the_embedding_lies_beside_the_bmodel(tiny_bundle: TinyBundles) -> None:
    made = tiny_bundle(4)
    expected = QuantizedCheckpoint(made.checkpoint).array("model.embed_tokens")
    stored = np.fromfile(made.folder / "embedding.bin", np.float16).reshape(expected.shape)
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize(("net", "layers"), [("block_cache_0", 2), ("block_cache_1", 1)])
def test_all_stages_of_a_net_share_weights_and_find_their_inputs_in_one_place(
    tiny_bundle: TinyBundles, net: str, layers: int
) -> None:
    bmodel = tiny_bundle(4).folder / "model.bmodel"
    stages = [stage for stage in read_stages(bmodel) if stage.net == net]
    assert len(stages) == len(TINY_SETTINGS.stages)
    assert len({(stage.weights.start, stage.weights.nbytes) for stage in stages}) == 1
    (inputs,) = {stage.inputs for stage in stages}
    assert len(inputs) == 3 + 2 * layers
    history_bytes = TINY_SETTINGS.rows * 4 * 32 * 2
    places = sorted(inputs[3:])
    assert all(later - earlier >= history_bytes for earlier, later in pairwise(places))


def test_a_joined_bmodel_is_what_model_tool_makes_of_it(
    tiny_bundle: TinyBundles, toolchain: Toolchain, tmp_path: Path
) -> None:
    made = tiny_bundle(4).folder / "model.bmodel"
    compiler = Compiler(toolchain, tmp_path)
    compiler.combine([made], tmp_path / "combined.bmodel")
    ours, theirs = compiler.summarize(made), compiler.summarize(tmp_path / "combined.bmodel")
    assert ours == theirs
    codes = [stage.weights.code for stage in read_stages(made)]
    assert codes == [stage.weights.code for stage in read_stages(tmp_path / "combined.bmodel")]


def test_the_result_may_be_named_relative_to_where_one_is(
    checkpoint: Path, whole: Path, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # model_tool ran in another folder and did not find its inputs.
    monkeypatch.chdir(tmp_path)
    compile_bundle(checkpoint, Path("out"), SMALL, BuildSettings(toolchain))
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("jobs", [1, 3])
def test_bytes_do_not_depend_on_jobs_or_place(whole: Path, make: Make, jobs: int) -> None:
    elsewhere = Make(make.checkpoint, make.out.with_name("other name"), make.toolchain)
    elsewhere(jobs=jobs)
    assert contents(elsewhere.out) == contents(whole)


def built(partial: Path) -> list[str]:
    return sorted(path.stem for path in (partial / "units").glob("*.bmodel"))


def has_a_net(partial: Path) -> bool:
    return bool(built(partial))


def is_joining(partial: Path) -> bool:
    return (partial / "bundle" / "model.bmodel").exists()


@pytest.mark.parametrize("moment", [lambda partial: partial.exists(), has_a_net, is_joining])
def test_killed_at_any_moment_it_continues_to_the_same_bytes(
    whole: Path, make: Make, moment: Callable[[Path], bool]
) -> None:
    words = [make.checkpoint, make.out, make.toolchain.root, make.toolchain.version]
    process = subprocess.Popen([sys.executable, "-c", BUILD, *map(str, words)])
    while not moment(make.partial) and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    make()
    assert contents(make.out) == contents(whole)
    assert not make.partial.exists()


def test_ctrl_c_leaves_no_compiler_and_can_be_continued(make: Make, whole: Path) -> None:
    words = [make.checkpoint, make.out, make.toolchain.root, make.toolchain.version]
    process = subprocess.Popen([sys.executable, "-c", BUILD, *map(str, words)], stderr=subprocess.PIPE)
    while not has_a_net(make.partial) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert err.endswith(b"KeyboardInterrupt\n")
    assert not working_in(make.partial)
    make()
    assert contents(make.out) == contents(whole)


def working_in(folder: Path) -> list[str]:
    """Return the processes whose working directory lies in a folder."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile, or is somebody else's
            found.append(str((process / "cwd").readlink()))
    return [directory for directory in found if directory.startswith(str(folder))]


class StoppedError(Exception):
    """Stands for a kill in the tests that stop a build at a chosen step."""


def stop_in(step: str, calls: int, build: Callable[[], None]) -> None:
    """Run a build that ends behind the given call of a step, as if it were killed there."""
    owner, name = (driver.Journal, step) if hasattr(driver.Journal, step) else (driver, step)
    real, done = getattr(owner, name), []

    def stop(*arguments: object, **named: object) -> object:
        result = real(*arguments, **named)
        done.append(name)
        if len(done) == calls:
            raise StoppedError
        return result

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, stop)
        with pytest.raises(StoppedError):
            build()


@pytest.mark.parametrize(("step", "calls"), [("add_moved", 1), ("add_moved", 3), ("write_embedding", 1)])
def test_weights_that_moved_are_found_again(make: Make, whole: Path, step: str, calls: int) -> None:
    stop_in(step, calls, make)
    events: list[CompileEvent] = []
    make(progress=events.append)
    assert [event.done for event in events] == [STAGES]  # nothing was compiled again
    assert contents(make.out) == contents(whole)


@pytest.mark.parametrize("name", ["block_cache_1.weights", "block_cache_1.bmodel"])
def test_a_finished_net_that_was_damaged_is_compiled_again(make: Make, whole: Path, name: str) -> None:
    stop_in("add", 3, make)
    damaged = make.partial / "units" / name
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    events: list[CompileEvent] = []
    make(progress=events.append)
    assert [event.done for event in events] == [STAGES - 3, STAGES - 2, STAGES - 1, STAGES]
    assert contents(make.out) == contents(whole)


def test_moved_weights_that_were_damaged_are_compiled_again(make: Make, whole: Path) -> None:
    stop_in("add_moved", 3, make)
    bmodel = make.partial / "bundle" / "model.bmodel"
    stage = next(stage for stage in read_stages(bmodel) if stage.net == "block_cache_1")
    with bmodel.open("r+b") as file:
        file.seek(stage.weights.start)
        file.write(b"?" * 8)
    events: list[CompileEvent] = []
    make(progress=events.append)
    assert [event.done for event in events] == [STAGES - 3, STAGES - 2, STAGES - 1, STAGES]
    assert contents(make.out) == contents(whole)


def test_other_settings_start_over_and_say_so(make: Make) -> None:
    stop_in("add", 2, make)
    notices: list[str] = []
    make(replace(SMALL, head_output="token"), notice=notices.append)
    assert notices == [f"{make.partial} holds a build of other settings or another checkpoint; starting over"]
    assert Manifest.read(make.out).head_output == "token"


def test_a_build_of_an_older_version_starts_over_and_says_so(make: Make) -> None:
    # Its record names the stages otherwise and knows nothing of layers per net.
    stop_in("add", 1, make)
    path = make.partial / "journal.json"
    record = json.loads(path.read_text())
    settings = record["task"]["settings"]
    settings["prefill"] = [16]
    for name in ("rows", "stages", "head_rows", "layers_per_net"):
        del settings[name]
    path.write_text(json.dumps(record))
    notices: list[str] = []
    make(notice=notices.append)
    assert notices == [f"{make.partial} holds a build of other settings or another checkpoint; starting over"]
    assert Manifest.read(make.out).stages == SMALL.stages


def test_a_bundle_of_an_older_version_is_refused_with_the_next_step(whole: Path, tmp_path: Path) -> None:
    values = json.loads((whole / MANIFEST_NAME).read_text()) | {"format": 1}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="has format 1, made by an older version"):
        Manifest.read(tmp_path)


def test_continuing_says_how_much_is_there(make: Make) -> None:
    stop_in("add", 2, make)
    notices: list[str] = []
    make(notice=notices.append)
    assert notices == ["continuing: 2 of 3 nets are finished"]


def test_work_can_be_kept(make: Make, whole: Path) -> None:
    make(keeps_work=True)
    assert contents(make.out) == contents(whole)
    assert built(make.partial) == ["block_cache_0", "block_cache_1", "lm_head"]
    assert (make.partial / "logs" / "block_cache_0-16-64.log").is_file()
    assert (make.partial / "units" / "lm_head.weights").is_file()


def test_floats_and_an_embedding_for_the_device(make: Make) -> None:
    settings = CompileSettings(
        bits=16,
        head="f16",
        context=32,
        rows=32,
        stages=(Stage(1, 32), Stage(8, 32)),
        dtype="bfloat16",
        embedding="device",
    )
    make(settings)
    manifest = Manifest.read(make.out)
    assert (manifest.bits, manifest.head, manifest.dtype) == (16, "f16", "bfloat16")
    assert [cost.tokens for cost in manifest.costs if cost.net == "embedding"] == [8, 1]
    assert "embedding.bin" not in manifest.files


def test_an_embedding_for_a_bfloat16_bundle_is_bfloat16(make: Make) -> None:
    make(replace(SMALL, dtype="bfloat16"))
    exact = QuantizedCheckpoint(make.checkpoint).array("model.embed_tokens").astype(np.float32)
    bits = np.fromfile(make.out / "embedding.bin", np.uint16).astype(np.uint32) << 16
    stored = bits.view(np.float32).reshape(exact.shape)
    np.testing.assert_array_equal(stored, exact)  # the tiny model's embedding is of bfloat16


def test_a_failing_compiler_stops_the_build_and_keeps_what_is_finished(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = driver.block_weights

    def lose_a_weight(source: Source, settings: CompileSettings, number: int) -> Arrays:
        weights = arrays(source, settings, number)
        if number == 1:
            weights.pop("0.self_attn.o_proj.qweight")
        return weights

    monkeypatch.setattr(driver, "block_weights", lose_a_weight)
    with pytest.raises(CompileError) as failed:
        make(jobs=1)
    message = str(failed.value)
    assert message.startswith("tpuc-opt ended with signal SIGABRT\ncommand: ")
    assert f"\nlast lines of {make.partial / 'logs' / 'block_cache_1-16-64.log'}:\n" in message
    assert "o_proj.qweight" in message
    assert not make.out.exists()
    assert built(make.partial) == ["block_cache_0", "lm_head"]


def other_weights(stages: list[StageLayout]) -> list[StageLayout]:
    return [replace(stages[0], weights=replace(stages[0].weights, code="0")), *stages[1:]]


def other_history(stages: list[StageLayout]) -> list[StageLayout]:
    return [replace(stages[0], inputs=(0,) * len(stages[0].inputs)), *stages[1:]]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [(other_weights, "its stages have different weights"), (other_history, "its stages have different hist")],
)
def test_stages_that_do_not_fit_together_stop_the_build(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[StageLayout]], list[StageLayout]],
    complaint: str,
) -> None:
    monkeypatch.setattr(driver, "read_stages", lambda path: change(read_stages(path)))
    with pytest.raises(CompileError, match=complaint):
        make()
    assert built(make.partial) in ([], ["lm_head"])


def test_a_net_of_other_shapes_stops_the_build(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_shapes", lambda net: ((1, 2),))
    with pytest.raises(CompileError, match=r"has the stages .*, expected are .*\(\(1, 2\),\)"):
        make()


def test_weights_that_change_while_they_move_are_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "copy_range", lambda *_: "another digest")
    with pytest.raises(
        CompileError, match=r"block_cache_0\.weights: changed after it was written; run the same"
    ):
        make()
    assert not make.out.exists()
