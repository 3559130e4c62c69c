import functools
import json
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from safetensors.numpy import load_file

from baichuan2_tpu.checkpoint.packing import dequantize, unpack_zeros
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.quantize import QuantizeEvent, driver, quantize
from models.foreign_checkpoint import pack_gptq, write_foreign
from models.reference import reference_logits
from models.tiny_checkpoint import (
    alibi_config,
    float_weights,
    official_tensors,
    restored_weights,
    rope_config,
    write_bin,
    write_config,
    write_llama_safetensors,
    write_official,
)
from models.tiny_tokenizer import write_sentencepiece

TOKENS = [5, 6, 7, 300, 9]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.1), (4, 1.5)])
@pytest.mark.parametrize("config", [rope_config(), alibi_config()], ids=["rope", "alibi"])
def test_logits_of_the_quantised_model_are_close_to_the_float_ones(
    tmp_path: Path, config: ModelConfig, bits: int, bound: float
) -> None:
    quantize(write_official(tmp_path / "float", config, seed=1), tmp_path / "q", bits=bits, method="search")
    quantized = QuantizedCheckpoint(tmp_path / "q").config
    assert quantized.quantization is not None
    assert quantized == replace(config, is_head_normalized=False, quantization=quantized.quantization)
    expected = reference_logits(config, float_weights(config, 1), TOKENS)
    found = reference_logits(quantized, restored_weights(QuantizedCheckpoint(tmp_path / "q")), TOKENS)
    error = np.abs(found - expected).max()
    assert error < bound, f"largest error {error:.4f}, logits spread {expected.std():.4f}"


def test_every_layout_of_the_same_weights_gives_the_same_integers(tmp_path: Path) -> None:
    config = rope_config(is_head_tied=True, is_head_normalized=False)
    for dtype in ("bfloat16", "float32"):
        source = write_llama_safetensors(tmp_path / f"{dtype} float", config, shards=2, dtype=dtype)
        quantize(source, tmp_path / dtype, bits=4, method="search")
    assert contents(tmp_path / "bfloat16") == contents(tmp_path / "float32")


def test_a_tied_head_is_not_written_a_second_time(tmp_path: Path) -> None:
    config = rope_config(is_head_tied=True, is_head_normalized=False)
    quantize(write_llama_safetensors(tmp_path / "float", config), tmp_path / "q", bits=4, method="search")
    index = json.loads((tmp_path / "q" / "model.safetensors.index.json").read_text())
    assert "model.embed_tokens.weight" in index["weight_map"]
    assert "lm_head.weight" not in index["weight_map"]
    with QuantizedCheckpoint(tmp_path / "q") as checkpoint:
        assert checkpoint.config.is_head_tied
        head, embedding = dequantize(checkpoint.linear("lm_head")), checkpoint.array("model.embed_tokens")
        assert np.abs(head - embedding).max() < 0.01


def test_a_large_tensor_is_the_same_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_official(tmp_path / "float", rope_config())
    quantize(source, tmp_path / "whole", bits=4, method="search")
    monkeypatch.setattr("baichuan2_tpu.quantize.linear._SLICE_WEIGHTS", 1000)
    quantize(source, tmp_path / "sliced", bits=4, method="search")
    assert contents(tmp_path / "whole") == contents(tmp_path / "sliced")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_bytes_do_not_depend_on_the_run_or_the_workers(tmp_path: Path, workers: int) -> None:
    source = write_official(tmp_path / "float", rope_config())
    quantize(source, tmp_path / "once", bits=4, method="search")
    quantize(source, tmp_path / "again", bits=4, method="search", workers=workers)
    assert contents(tmp_path / "once") == contents(tmp_path / "again")
    assert not list(tmp_path.glob("*.partial"))


def test_the_directory_is_one_that_gptq_readers_know(tmp_path: Path) -> None:
    quantize(
        write_official(tmp_path / "float", rope_config()),
        tmp_path / "q",
        bits=4,
        method="search",
        group_size=128,
    )
    values = json.loads((tmp_path / "q" / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert values["torch_dtype"] == "float16"
    assert values["quantization_config"] == {
        "quant_method": "gptq",
        "checkpoint_format": "gptq_v2",
        "bits": 4,
        "group_size": 128,
        "sym": False,
        "desc_act": False,
        "meta": {"head_bits": 8},
    }
    index = json.loads((tmp_path / "q" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["model.layers.1.mlp.up_proj.g_idx"] == "model-00003-of-00004.safetensors"
    assert sorted(path.name for path in (tmp_path / "q").glob("*.safetensors")) == [
        *(f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)),
        "quantized_head.safetensors",
    ]


def test_other_readers_find_a_folded_float_head_and_pass_over_the_quantised_one(tmp_path: Path) -> None:
    # transformers ignored the quantised head without a word and answered with one of random numbers.
    config = rope_config()
    quantize(write_official(tmp_path / "float", config), tmp_path / "q", bits=4, method="search")
    index = json.loads((tmp_path / "q" / "model.safetensors.index.json").read_text())["weight_map"]
    assert [name for name in index if name.startswith("lm_head")] == ["lm_head.weight"]
    assert "quantized_head.safetensors" not in index.values()
    written = load_file(tmp_path / "q" / index["lm_head.weight"])["lm_head.weight"]
    head = float_weights(config, 0)["lm_head.weight"]
    expected = head / np.linalg.norm(head, axis=1, keepdims=True)
    assert written.dtype == np.float16
    assert np.abs(written - expected).max() < 1e-3


def test_zeros_are_written_as_they_are(tmp_path: Path) -> None:
    # GPTQModel refuses zeros minus one where the integers are not symmetric.
    quantize(write_official(tmp_path / "float", rope_config()), tmp_path / "q", bits=4, method="search")
    name = "model.layers.0.mlp.up_proj.qzeros"
    index = json.loads((tmp_path / "q" / "model.safetensors.index.json").read_text())["weight_map"]
    written = load_file(tmp_path / "q" / index[name])[name].view(np.uint8)
    stored = np.stack([written & 15, written >> 4], axis=-1).reshape(2, -1)
    with QuantizedCheckpoint(tmp_path / "q") as checkpoint:
        np.testing.assert_array_equal(stored.T, unpack_zeros(checkpoint.linear("model.layers.0.mlp.up_proj")))
    assert stored.min() >= 1


def test_the_tokenizer_and_settings_are_carried_over_and_code_is_not(tmp_path: Path) -> None:
    source = write_official(tmp_path / "float", rope_config())
    carried = {"tokenizer.model": "m", "special_tokens_map.json": "{}", "generation_config.json": '{"a": 1}'}
    for name, text in (carried | {"modeling_baichuan.py": "raise SystemExit"}).items():
        (source / name).write_text(text)
    quantize(source, tmp_path / "q", bits=8)
    assert {name: (tmp_path / "q" / name).read_text() for name in carried} == carried
    assert not list((tmp_path / "q").glob("*.py"))


def test_the_tokenizer_s_settings_name_no_code(tmp_path: Path) -> None:
    # transformers asked for tokenization_baichuan.py, which is not carried over.
    source = write_official(tmp_path / "float", rope_config())
    write_sentencepiece(source)
    official = {
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "tokenizer_class": "BaichuanTokenizer",
        "model_max_length": 4096,
    }
    (source / "tokenizer_config.json").write_text(json.dumps(official))
    quantize(source, tmp_path / "q", bits=8)
    assert json.loads((tmp_path / "q" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 4096,
    }
    (source / "tokenizer.model").unlink()
    (source / "tokenizer.json").write_text("{}")
    quantize(source, tmp_path / "bpe", bits=8)
    assert json.loads((tmp_path / "bpe" / "tokenizer_config.json").read_text()) == {
        "model_max_length": 4096,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert (tmp_path / "bpe" / "tokenizer.json").read_text() == "{}"


def test_a_chat_model_without_settings_gets_the_official_ones(tmp_path: Path) -> None:
    quantize(write_official(tmp_path / "float", rope_config()), tmp_path / "q", bits=8)
    values = json.loads((tmp_path / "q" / "generation_config.json").read_text())
    assert values == {
        "max_new_tokens": 2048,
        "temperature": 0.3,
        "top_k": 5,
        "top_p": 0.85,
        "repetition_penalty": 1.05,
        "do_sample": True,
        "bos_token_id": 1,
        "eos_token_id": [2],
    }


def test_progress_goes_from_nothing_to_everything(tmp_path: Path) -> None:
    events: list[QuantizeEvent] = []
    source = write_official(tmp_path / "float", rope_config())
    quantize(source, tmp_path / "q", bits=4, method="search", progress=events.append)
    assert [event.done for event in events] == [0, 1, 2, 3, 4, 5]
    assert events[0].done_bytes == 0
    assert events[-1].done_bytes == events[-1].total_bytes
    index = json.loads((tmp_path / "q" / "model.safetensors.index.json").read_text())
    head = sum(tensor.nbytes for tensor in load_file(tmp_path / "q" / "quantized_head.safetensors").values())
    assert index["metadata"]["total_size"] + head == events[-1].total_bytes


class Interruption(Exception):  # noqa: N818 - stands for Ctrl-C
    pass


def interrupt_after(done: int) -> Callable[[QuantizeEvent], None]:
    def progress(event: QuantizeEvent) -> None:
        if event.done == done:
            raise Interruption

    return progress


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    source = write_official(tmp_path / "float", rope_config())
    quantize(source, tmp_path / "whole", bits=4, method="search")
    with pytest.raises(Interruption):
        quantize(source, tmp_path / "q", bits=4, method="search", workers=1, progress=interrupt_after(2))
    assert not (tmp_path / "q").exists()
    first = tmp_path / "q.partial" / "quantized_head.safetensors"
    written = first.stat().st_mtime_ns
    events: list[QuantizeEvent] = []
    quantize(source, tmp_path / "q", bits=4, method="search", progress=events.append)
    assert events[0].done >= 2
    assert (tmp_path / "q" / first.name).stat().st_mtime_ns == written
    assert contents(tmp_path / "q") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["bits", "head_bits", "group_size", "source", "damage", "journal"])
def test_another_task_or_a_damaged_file_starts_over(tmp_path: Path, change: str) -> None:
    source = write_official(tmp_path / "float", rope_config(layers=3))
    with pytest.raises(Interruption):
        quantize(source, tmp_path / "q", bits=4, method="search", workers=1, progress=interrupt_after(1))
    partial = tmp_path / "q.partial"
    bits, group_size = 8 if change == "bits" else 4, 128 if change == "group_size" else 64
    head_bits = 4 if change == "head_bits" else 8
    if change == "source":
        write_official(source, rope_config(layers=2), seed=5)
    for path in partial.glob("*.safetensors") if change == "damage" else ():
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    if change == "journal":
        (partial / "journal.json").write_text("{")
    events: list[QuantizeEvent] = []
    asked = functools.partial(
        quantize, source, method="search", bits=bits, group_size=group_size, head_bits=head_bits
    )
    asked(tmp_path / "q", progress=events.append)
    assert events[0].done == 0
    asked(tmp_path / "fresh")
    assert contents(tmp_path / "q") == contents(tmp_path / "fresh")


def test_other_settings_of_another_tool_start_over(tmp_path: Path) -> None:
    """Those beside config.json were not part of the record: half of the zeros would be one too low."""
    settings: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    write_foreign(source := tmp_path / "m", settings, pack_gptq)
    values = json.loads((source / "config.json").read_text())
    del values["quantization_config"]
    (source / "config.json").write_text(json.dumps(values))
    (source / "quantize_config.json").write_text(json.dumps(settings))
    with pytest.raises(Interruption):
        quantize(source, tmp_path / "q", workers=1, progress=interrupt_after(3))
    (source / "quantize_config.json").write_text(json.dumps(settings | {"checkpoint_format": "gptq_v2"}))
    quantize(source, tmp_path / "q")
    quantize(source, tmp_path / "fresh")
    assert contents(tmp_path / "q") == contents(tmp_path / "fresh")


def failure(
    kind: type[Exception],
    source: Path,
    destination: Path,
    *,
    bits: int = 4,
    group_size: int = 64,
    head_bits: int = 8,
    workers: int = 2,
) -> str:
    with pytest.raises(kind) as caught:
        quantize(
            source,
            destination,
            bits=bits,
            method="search",
            group_size=group_size,
            head_bits=head_bits,
            workers=workers,
        )
    assert not destination.exists() or kind is RequestError
    return str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e38])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.1.self_attn.W_pack.weight", "row 1, column 2 of model.layers.1.self_attn.v_proj"),
        ("model.embed_tokens.weight", "row 257, column 2 of model.embed_tokens"),
        ("model.layers.0.mlp.down_proj.weight", "row 1, column 2 of model.layers.0.mlp.down_proj"),
    ],
)
def test_a_weight_that_is_no_number_is_named_with_its_place(
    tmp_path: Path, name: str, place: str, value: float
) -> None:
    tensors = official_tensors(rope_config(), 0)
    tensors[name][1 if "down" in name else 257, 2] = value
    source = tmp_path / "float"
    source.mkdir()
    write_config(source, rope_config())
    write_bin(source / "pytorch_model.bin", tensors)
    message = failure(CheckpointError, source, tmp_path / "q")
    assert f"pytorch_model.bin: tensor '{name}': {place} is " in message
    assert "allowed is -65504 to 65504" in message
    assert not (tmp_path / "q.partial").exists()


def test_wrong_settings_are_refused_before_any_work(tmp_path: Path) -> None:
    source = write_official(tmp_path / "float", rope_config())
    target = tmp_path / "q"
    assert "bits is 3, allowed are 4 and 8" in failure(RequestError, source, target, bits=3)
    assert "head bits is 16, allowed are 4 and 8" in failure(RequestError, source, target, head_bits=16)
    assert "allowed are multiples of 64" in failure(RequestError, source, target, group_size=100)
    # Was a type error of the native search, several lines long.
    assert "64 up to 65536" in failure(RequestError, source, target, group_size=64 * 10**20)
    assert "group size is 0" in failure(RequestError, source, target, group_size=0)
    assert "workers is 0, allowed is 1 or more" in failure(RequestError, source, target, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["float"]


def test_an_existing_destination_is_never_touched(tmp_path: Path) -> None:
    source = write_official(tmp_path / "float", rope_config())
    (tmp_path / "q").mkdir()
    assert "exists already; remove it" in failure(RequestError, source, tmp_path / "q")


def test_a_link_to_nothing_is_an_existing_destination(tmp_path: Path) -> None:
    # Was found out by the last step, after everything had been quantised.
    source = write_official(tmp_path / "float", rope_config())
    (tmp_path / "q").symlink_to("nowhere")
    assert "exists already; remove it" in failure(RequestError, source, tmp_path / "q")
    assert not (tmp_path / "q.partial").exists()


def test_a_partial_directory_of_something_else_keeps_its_files(tmp_path: Path) -> None:
    # Its files were removed as leftovers.
    source = write_official(tmp_path / "float", rope_config())
    (tmp_path / "q.partial").mkdir()
    (tmp_path / "q.partial" / "thesis.txt").write_text("mine")
    assert "holds files of something else; move it away" in failure(RequestError, source, tmp_path / "q")
    assert contents(tmp_path / "q.partial") == {"thesis.txt": b"mine"}


def test_a_destination_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    source = write_official(tmp_path / "float", rope_config())
    (tmp_path / "file").write_text("")
    message = failure(RequestError, source, tmp_path / "file" / "q")
    assert "q.partial: Not a directory; name a destination you can write to" in message


def test_a_source_without_a_tokenizer_is_refused_before_any_work(tmp_path: Path) -> None:
    source = write_official(tmp_path / "float", rope_config())
    (source / "tokenizer.model").unlink()
    message = failure(CheckpointError, source, tmp_path / "q")
    assert "holds neither tokenizer.model nor tokenizer.json" in message
    assert [path.name for path in tmp_path.iterdir()] == ["float"]


def test_a_full_disk_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(driver.shutil, "disk_usage", lambda _: Usage)
    message = failure(RequestError, write_official(tmp_path / "float", rope_config()), tmp_path / "q")
    assert "needs 0.07 GB more, the disk has 0.00 GB free" in message


def test_a_disk_that_fills_on_the_way_is_told_and_the_run_continues(tmp_path: Path) -> None:
    # Was "internal: SafetensorError: …; please report it": the library has the system's fault as text.
    source = write_official(tmp_path / "float", rope_config())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        message = failure(RequestError, source, tmp_path / "q")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "q.partial: File too large, " in message
    assert "GB are free; what is finished is kept: free some space and run the same command" in message
    assert not list((tmp_path / "q.partial").glob("*.part"))
    quantize(source, tmp_path / "q", bits=4, method="search")


def test_a_partial_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    # With a file "lock" in it, somebody's folder was cleaned as leftovers.
    source = write_official(tmp_path / "float", rope_config())
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("lock", "thesis.tex"):
        (theirs / name).touch()
    (tmp_path / "q.partial").symlink_to(theirs)
    assert "q.partial is a link to" in failure(RequestError, source, tmp_path / "q")
    assert sorted(path.name for path in theirs.iterdir()) == ["lock", "thesis.tex"]


def test_two_runs_into_one_directory_do_not_mix(tmp_path: Path) -> None:
    source = write_official(tmp_path / "float", rope_config())
    with driver.locked_folder(tmp_path / "q.partial"):
        assert "is being written by another process" in failure(RequestError, source, tmp_path / "q")
    quantize(source, tmp_path / "q", bits=4, method="search")


@pytest.mark.parametrize(("bits", "head_bits"), [(8, 8), (8, 4), (4, 4)])
def test_head_bits_and_group_size_are_read_back(
    tmp_path: Path, bits: Literal[4, 8], head_bits: Literal[4, 8]
) -> None:
    source = write_official(tmp_path / "float", rope_config(intermediate_size=200))
    quantize(source, tmp_path / "q", bits=bits, method="search", group_size=128, head_bits=head_bits)
    checkpoint = QuantizedCheckpoint(tmp_path / "q")
    assert checkpoint.config.quantization == QuantizationConfig(bits, 128, head_bits)
    assert checkpoint.linear("lm_head").bits == head_bits
    down = checkpoint.linear("model.layers.0.mlp.down_proj")
    assert down.scales.shape == (2, 128)  # 200 columns: the second group holds 72


def test_a_tied_head_that_is_normalised_is_written_beside_the_embedding(tmp_path: Path) -> None:
    """Other tools took the embedding as it is for the head, ours its rows divided by their norms."""
    config = rope_config(is_head_tied=True)
    quantize(write_official(tmp_path / "float", config), tmp_path / "q", method="search")
    weights = load_file(tmp_path / "q" / "model-00004-of-00004.safetensors")
    rows = float_weights(config, 0)["model.embed_tokens.weight"]
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(weights["lm_head.weight"], expected, atol=1e-3)
    assert not QuantizedCheckpoint(tmp_path / "q").config.is_head_tied
