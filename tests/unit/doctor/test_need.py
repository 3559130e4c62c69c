"""What models need is counted from their files, without loading any of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from baichuan2_tpu.bmodel.header import BmodelFile
from baichuan2_tpu.compile.settings import MOST_CONTEXT
from baichuan2_tpu.doctor import need as module
from baichuan2_tpu.doctor.need import VENDOR_MINIMUM_BYTES, read_need
from baichuan2_tpu.errors import ArtifactError, ContextLengthError, RequestError
from baichuan2_tpu.shapes import shape_config
from models.bundle_manifest import bundle_manifest
from models.foreign_checkpoint import pack_gptq, write_foreign
from models.tiny_checkpoint import rope_config, write_official

KV_BYTES = 32 * 2 * 4096 * 2
"""A token of the 7B: layers, keys and values, hidden size, bytes."""


def test_a_bundle_needs_what_its_manifest_says(tmp_path: Path) -> None:
    bundle_manifest(device_bytes=10**9).write(tmp_path)
    need = read_need(str(tmp_path))
    assert need.device_bytes == 10**9 + 17 * 512 * 4  # logits of all stages of the head
    assert need.host_bytes == 512 * 128 * 2  # the embedding
    assert (need.runs_on, need.context, need.chip, need.is_estimate) == ("tpu", 128, "bm1684x", False)


def test_an_embedding_on_the_device_takes_nothing_of_the_host(tmp_path: Path) -> None:
    bundle_manifest(embedding="device").write(tmp_path)
    assert read_need(str(tmp_path)).host_bytes == 0


def test_a_bmodel_needs_a_history_beside_its_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "baichuan2-7b_int8_1dev.bmodel").touch()
    monkeypatch.setattr(BmodelFile, "read", lambda path: BmodelFile("bm1684x", 1, 7 * 10**9))
    usual, longer = read_need(str(tmp_path)), read_need(str(tmp_path), 1024)
    assert usual.device_bytes == 7 * 10**9 + 512 * KV_BYTES
    assert longer.device_bytes == 7 * 10**9 + 1024 * KV_BYTES
    assert (usual.bits, usual.is_baichuan2_7b, usual.chip) == (8, True, "bm1684x")


def test_a_damaged_bmodel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bmodel").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="is not a bmodel"):
        read_need(str(tmp_path))


def test_a_checkpoint_needs_weights_and_the_history_of_its_context(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape_config("baichuan2-7b", 4).to_json()))
    save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
    long, short = read_need(str(tmp_path)), read_need(str(tmp_path), 512)
    assert long.host_bytes - short.host_bytes == (4096 - 512) * KV_BYTES * 132 // 256  # int8 on the cpu
    assert (long.context, long.is_estimate) == (4096, True)
    assert long.device_bytes is not None
    assert short.device_bytes is not None
    # Compiled, the history grows with the context, and the instructions with the stages that read it.
    assert long.device_bytes - short.device_bytes == pytest.approx((4096 - 512) * KV_BYTES, rel=0.1)


def test_rows_for_all_conversations_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape_config("baichuan2-7b", 4).to_json()))
    save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
    alone, shared = read_need(str(tmp_path)), read_need(str(tmp_path), rows=8192)
    assert (alone.rows, shared.rows, shared.context) == (4096, 8192, 4096)
    assert alone.device_bytes is not None
    assert shared.device_bytes is not None
    assert shared.device_bytes - alone.device_bytes == pytest.approx(4096 * KV_BYTES, rel=0.1)
    assert shared.host_bytes == alone.host_bytes


def test_rows_of_what_is_compiled_already_cannot_be_asked_for(tmp_path: Path) -> None:
    bundle_manifest(rows=256).write(tmp_path)
    assert read_need(str(tmp_path), rows=256).rows == read_need(str(tmp_path)).rows == 256
    with pytest.raises(RequestError, match="--rows is for a checkpoint that can be compiled; leave it out"):
        read_need(str(tmp_path), rows=512)


def test_a_context_that_nothing_can_be_compiled_for_gives_no_estimate(tmp_path: Path) -> None:
    config = replace(shape_config("baichuan2-7b", 4), max_context=2 * MOST_CONTEXT)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
    assert read_need(str(tmp_path), MOST_CONTEXT).device_bytes is not None
    assert read_need(str(tmp_path), 2 * MOST_CONTEXT).device_bytes is None


@pytest.mark.parametrize(
    ("model", "longest"),
    [("baichuan2-7b-chat", 4096), ("baichuan2-7b-int8-bmodel", 512), ("folder", 4096)],
)
def test_a_context_that_the_model_refuses_is_refused(
    model: str, longest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever was asked for was counted, and judged to fit or not.
    if model == "folder":
        model = str(tmp_path)
        (tmp_path / "a.bmodel").touch()
        monkeypatch.setattr(BmodelFile, "read", lambda path: BmodelFile("bm1684x", 1, 7 * 10**9))
    complaint = (
        rf"a context of 99999 tokens is asked for, .* allows 1 to {longest}; use --context {longest} or"
    )
    with pytest.raises(ContextLengthError, match=complaint):
        read_need(model, 99_999)
    assert read_need(model, longest).context == longest


def test_a_gguf_is_only_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    need = read_need(str(path))
    assert (need.host_bytes, need.device_bytes) == (0, None)


def test_known_names_are_counted_by_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("demo", "baichuan2-7b-chat", "baichuan2-7b-int4-bmodel")
    monkeypatch.setattr(module, "KNOWN_MODELS", dict.fromkeys(names))
    demo, seven, compiled = map(read_need, names)
    assert demo.host_bytes == 0
    assert (seven.runs_on, seven.bits, seven.is_baichuan2_7b) == ("cpu", 4, True)
    assert 6 * 10**9 < seven.host_bytes < 7.5 * 10**9
    assert (compiled.runs_on, compiled.device_bytes) == ("tpu", VENDOR_MINIMUM_BYTES[4])


def test_a_known_name_goes_before_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The folder was judged, and chat then ran the known model.
    (tmp_path / "demo").mkdir()
    bundle_manifest().write(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert (read_need("demo").runs_on, read_need("demo").compiled) == ("cpu", None)
    assert (read_need("./demo").runs_on, read_need("./demo").compiled) == ("tpu", Path("demo"))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(RequestError, match="is neither a path that exists nor a known model; give"):
        read_need("no such model")


def test_a_vocabulary_that_will_be_padded_can_be_compiled(tmp_path: Path) -> None:
    """It was counted as it is, and said to fit no device."""
    config = rope_config(vocabulary_size=397)
    need = read_need(str(write_official(tmp_path / "odd", config)))
    padded = read_need(str(write_official(tmp_path / "even", replace(config, vocabulary_size=448))))
    assert need.device_bytes is not None
    assert (need.device_bytes, need.host_bytes) == (padded.device_bytes, padded.host_bytes)


def test_what_another_tool_quantised_is_counted_in_its_own_bits(tmp_path: Path) -> None:
    """It was counted as floats that will get 4 bits."""
    settings = {"quant_method": "gptq", "bits": 8, "group_size": 64}
    write_foreign(tmp_path / "m", settings, pack_gptq, bits=8)
    need = read_need(str(tmp_path / "m"))
    assert need.bits == 8
    assert need.title.startswith("m: quantised by another tool, repacked once when it is used, 2 layers of 8")
