"""What a user calls a model leads to a quantised checkpoint, made once and kept in the cache."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from baichuan2_tpu import resolve
from baichuan2_tpu.checkpoint.identify import Located
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import QuantizationConfig
from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.resolve import KNOWN_MODELS, FetchWish, ResolveSettings, find_source, resolve_model
from models.foreign_checkpoint import pack_gptq, write_foreign
from models.tiny_adapter import adapter_matrices, write_adapter
from models.tiny_checkpoint import float_weights, rope_config, write_llama_safetensors, write_official
from models.tiny_gguf import write_gguf
from models.tiny_tokenizer import write_sentencepiece


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(resolve, "cache_folder", lambda: folder)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = write_official(tmp_path / "Tiny-Chat", rope_config(vocabulary_size=400))
    write_sentencepiece(directory)
    return directory


def test_float_checkpoint_is_quantised_once(source: Path, cache: Path) -> None:
    notices: list[str] = []
    located = resolve_model(str(source), notice=notices.append)
    first = located.path
    assert located.kind == "quantized"
    assert first.parent == cache / "models"
    assert first.name.startswith("Tiny-Chat-w4g64-scale-")
    assert notices == [f"quantising {source} to 4 bits (once, into {first})"]
    assert resolve_model(str(source), notice=pytest.fail) == located


def test_an_empty_name_is_refused_with_those_that_are_known() -> None:
    # It was taken for the directory of the shell, which holds no config.json.
    with pytest.raises(RequestError, match=r"'' is neither a path that exists nor a known model; .*: demo,"):
        resolve_model("", notice=pytest.fail)


def test_settings_choose_another_place(source: Path) -> None:
    four = resolve_model(str(source), notice=lambda _: None)
    eight = resolve_model(str(source), ResolveSettings(bits=8), notice=lambda _: None)
    assert four != eight
    assert QuantizedCheckpoint(eight.path).config.quantization == QuantizationConfig(8)


def test_changed_source_is_quantised_again(source: Path) -> None:
    first = resolve_model(str(source), notice=lambda _: None)
    os.utime(source / "config.json", (1, 1))
    assert resolve_model(str(source), notice=lambda _: None) != first


def test_a_changed_chat_template_is_copied_again(source: Path) -> None:
    """The cached copy kept the template of the day when it was made."""
    template = source / "chat_template.jinja"
    template.write_text("first")
    first = resolve_model(str(source), notice=lambda _: None)
    template.write_text("second")
    second = resolve_model(str(source), notice=lambda _: None)
    assert (first.path / template.name).read_text() == "first"
    assert (second.path / template.name).read_text() == "second"


def test_a_split_gguf_has_one_place_whichever_part_is_named(tmp_path: Path) -> None:
    config = rope_config(vocabulary_size=264)
    write_gguf(tmp_path / "Tiny.gguf", config, float_weights(config, 0), split_max_tensors=12)
    parts = sorted(tmp_path.glob("Tiny-*.gguf"))
    notices: list[str] = []
    located = {resolve_model(str(path), notice=notices.append) for path in (*parts, tmp_path)}
    assert len(parts) == 2
    assert all(place.path.name.startswith("Tiny-w4g64-") for place in located)
    assert len(located) == 1
    assert [line for line in notices if "it is quantised a second time" in line] == notices[1:]
    os.utime(parts[1], (1, 1))
    assert resolve_model(str(parts[0]), notice=notices.append) not in located


def test_an_adapter_beside_a_model_is_named_and_not_merged(source: Path, tmp_path: Path) -> None:
    """It was ignored without a word; then the step beside a quantised model was one that is refused."""
    quantize(source, ready := tmp_path / "ready", bits=4)
    into = " into the float checkpoint MODEL"
    for path, step in (
        (source, f": baichuan2 quantize {source}"),
        (ready, f"{into}: baichuan2 quantize MODEL"),
    ):
        write_adapter(path, adapter_matrices(rope_config(), ("W_pack",)))
        notices: list[str] = []
        resolve_model(str(path), notice=notices.append)
        assert notices[0] == (
            f"{path} also holds a LoRA adapter (trained on 'baichuan-inc/Baichuan2-7B-Chat'), which is not "
            f"used; to merge it{step} DST --adapter {path}"
        )
    find_source(str(source), pytest.fail, adapters=[source])


def test_quantised_checkpoint_is_used_where_it_lies(source: Path, tmp_path: Path, cache: Path) -> None:
    quantize(source, tmp_path / "ready", bits=4, method="search")
    ready = Located(tmp_path / "ready", "quantized")
    assert resolve_model(str(ready.path), notice=pytest.fail) == ready
    assert not cache.exists()


def test_what_another_tool_quantised_is_repacked_once(tmp_path: Path, cache: Path) -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    write_foreign(tmp_path / "Tiny-GPTQ", settings, pack_gptq, group_size=128)
    notices: list[str] = []
    located = resolve_model(str(tmp_path / "Tiny-GPTQ"), notice=notices.append)
    assert located.kind == "quantized"
    assert located.path.parent == cache / "models"
    assert located.path.name.startswith("Tiny-GPTQ-repacked-")
    assert QuantizedCheckpoint(located.path).config.quantization == QuantizationConfig(4, 128)
    assert notices[0] == f"repacking {tmp_path / 'Tiny-GPTQ'} (once, into {located.path})"
    assert "the integers of its layers are kept" in notices[1]
    assert resolve_model(str(tmp_path / "Tiny-GPTQ"), notice=pytest.fail) == located
    eight = resolve_model(str(tmp_path / "Tiny-GPTQ"), ResolveSettings(bits=8), notice=notices.append)
    assert eight.path.name.startswith("Tiny-GPTQ-w8g64-")
    # Which method is used depends on the files: the name of 4 bits said "scale" where integers are kept.
    four = resolve_model(str(tmp_path / "Tiny-GPTQ"), ResolveSettings(bits=4), notice=notices.append)
    assert QuantizedCheckpoint(four.path).config.quantization == QuantizationConfig(4)
    assert four.path.name.removeprefix("Tiny-GPTQ-").split("-")[0] == "w4g64"
    assert "scale" not in four.path.name


def test_known_model_is_fetched_only_when_it_is_needed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []

    def fetch(wish: FetchWish) -> Path:
        fetched.append(source)
        return source

    monkeypatch.setattr(resolve, "KNOWN_MODELS", {"demo": replace(KNOWN_MODELS["demo"], fetch=fetch)})
    first = resolve_model("demo", notice=lambda _: None)
    assert first.path.name.startswith("demo-w8g64-search-")
    assert resolve_model("demo", notice=pytest.fail) == first
    assert fetched == [source]


def test_room_for_the_quantised_model_is_wanted_before_it_is_fetched(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes: list[FetchWish] = []

    def fetch(wish: FetchWish) -> Path:
        wishes.append(wish)
        return source

    name = "baichuan2-7b-chat"
    monkeypatch.setattr(resolve, "KNOWN_MODELS", {name: replace(KNOWN_MODELS[name], fetch=fetch)})
    resolve_model(name, notice=lambda _: None)
    assert 5.5e9 < wishes[0].spare_bytes < 6.5e9
    resolve_model(name, ResolveSettings(bits=8), notice=lambda _: None)
    assert 9e9 < wishes[1].spare_bytes < 10e9


def test_compiled_model_is_used_where_it_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "baichuan2-7b-int8-bmodel"
    known = replace(KNOWN_MODELS[name], fetch=lambda wish: tmp_path)
    monkeypatch.setattr(resolve, "KNOWN_MODELS", {name: known})
    bmodel = tmp_path / "baichuan2-7b_int8_1dev.bmodel"
    bmodel.touch()
    assert resolve_model(name, notice=pytest.fail) == Located(tmp_path, "bmodel", bmodel)


def test_compiled_model_is_not_fetched_to_be_quantised() -> None:
    with pytest.raises(RequestError, match="is compiled already; give a checkpoint"):
        find_source("baichuan2-7b-int4-bmodel", pytest.fail)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RequestError) as caught:
        find_source("baichuan3", pytest.fail)
    assert str(caught.value) == (
        "'baichuan3' is neither a path that exists nor a known model; give a checkpoint or bundle directory, "
        "a .gguf file, or one of: demo, baichuan2-7b-chat, baichuan2-7b-base, baichuan2-13b-chat, "
        "baichuan2-13b-base, baichuan2-7b-int8-bmodel, baichuan2-7b-int4-bmodel"
    )


def test_directory_without_a_model_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path), notice=pytest.fail)


def test_failed_quantisation_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    directory = write_llama_safetensors(tmp_path / "no-tokenizer", rope_config())
    (directory / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        resolve_model(str(directory), notice=lambda _: None)
    assert not list(cache.glob("models/*"))
