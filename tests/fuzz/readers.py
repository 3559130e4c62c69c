"""Every reader of a stranger's file, with a small whole file to start from."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.bmodel.header import BmodelFile
from baichuan2_tpu.bmodel.weights import detach_weights, fill_skeleton, read_stages
from baichuan2_tpu.chat import Conversation
from baichuan2_tpu.checkpoint.adapter import Adapter
from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.formats.gguf_file import GgufFile
from baichuan2_tpu.checkpoint.formats.gguf_tokenizer import check_tokenizer, write_tokenizer
from baichuan2_tpu.checkpoint.formats.safetensors_file import SafetensorsFile
from baichuan2_tpu.checkpoint.formats.torch_file import TorchFile
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.checkpoint.layout import llama_shapes
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.compile.journal import FinishedUnit
from baichuan2_tpu.compile.journal import Journal as CompileJournal
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.fetch.record import Record, RecordedFile
from baichuan2_tpu.fetch.transfer.hubs import RemoteFile
from baichuan2_tpu.fetch.transfer.part_file import PartFile, Piece
from baichuan2_tpu.files import Digest, digest_file, read_json
from baichuan2_tpu.generate.settings import GenerationSettings, read_settings
from baichuan2_tpu.manifest import Manifest, NetCost
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.quantize.journal import Journal as QuantizeJournal
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.template import BaichuanTemplate
from baichuan2_tpu.toolchain.record import Record as ToolchainRecord
from doubles.fakes import ByteTokenizer, ScriptedEngine
from models.bitsandbytes_checkpoint import write_official_4bits, write_transformers_4bits
from models.bundle_manifest import bundle_manifest
from models.foreign_checkpoint import Arrays, Integers, pack_awq, pack_compressed, pack_gptq, write_foreign
from models.ggml_blocks import BLOCK_KINDS, random_blocks
from models.tiny_adapter import adapter_matrices, write_adapter
from models.tiny_bmodel import write_bmodel
from models.tiny_checkpoint import (
    float_weights,
    rope_config,
    write_bin,
    write_config,
    write_llama_safetensors,
    write_official,
    write_safetensors_bf16,
)
from models.tiny_gguf import Block, sentencepiece_entries, write_gguf
from models.tiny_tokenizer import write_bpe, write_sentencepiece

__all__ = ["READERS", "Reader"]

CONFIG = rope_config(vocabulary_size=264)
_GGUF_CONFIG = rope_config(
    vocabulary_size=264, hidden_size=256, intermediate_size=256, head_size=64, layers=1
)
_TASK: dict[str, object] = {"settings": {"prefill": (16, 64)}}
_UNIT = "block_cache_0"
_GPTQ: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": 64}
_AWQ: dict[str, object] = {"quant_method": "awq", "bits": 4, "group_size": 64}
_SCHEME = {"weights": {"num_bits": 4, "group_size": 64}}
_COMPRESSED: dict[str, object] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": _SCHEME},
}
_pack_compressed = partial(pack_compressed, zeros="words")


@dataclass(frozen=True, slots=True)
class Reader:
    """``write`` makes a whole folder and returns the file in it to damage; ``read`` reads the folder."""

    write: Callable[[Path], Path]
    read: Callable[[Path], object]


def _write_safetensors(folder: Path) -> Path:
    write_safetensors_bf16(folder / "model.safetensors", float_weights(CONFIG, 0))
    return folder / "model.safetensors"


def _read_safetensors(folder: Path) -> None:
    file = SafetensorsFile(folder / "model.safetensors")
    for name in file.tensors:
        file.read(name)
    file.close()


def _write_torch(folder: Path) -> Path:
    weights = float_weights(CONFIG, 0)
    write_bin(folder / "pytorch_model.bin", {name: weights[name] for name in list(weights)[:4]})
    return folder / "pytorch_model.bin"


def _read_torch(folder: Path) -> None:
    file = TorchFile(folder / "pytorch_model.bin")
    for name in file.tensors:
        file.read(name)
    file.close()


def _write_gguf(folder: Path) -> Path:
    """Write a file of as many types as it has matrices."""
    kinds = itertools.cycle(BLOCK_KINDS)
    tensors: dict[str, NDArray[np.float32] | Block] = {}
    for name, tensor in float_weights(_GGUF_CONFIG, 0).items():
        kind = next(kinds) if tensor.ndim > 1 else None
        tensors[name] = tensor if kind is None else Block(kind, random_blocks(kind, tensor.shape, 0))
    return write_gguf(folder / "model.gguf", _GGUF_CONFIG, tensors)


def _write_baichuan_gguf(folder: Path) -> Path:
    write_sentencepiece(folder)
    entries = sentencepiece_entries(folder, 512)
    (folder / "tokenizer.model").unlink()
    tensors = {"model.norm.weight": float_weights(_GGUF_CONFIG, 0)["model.norm.weight"]}
    return write_gguf(folder / "model.gguf", _GGUF_CONFIG, tensors, architecture="baichuan", entries=entries)


def _write_split_gguf(folder: Path) -> Path:
    write_gguf(folder / "model.gguf", _GGUF_CONFIG, float_weights(_GGUF_CONFIG, 0), split_max_tensors=7)
    return folder / "model-00001-of-00002.gguf"


def _read_gguf(folder: Path) -> None:
    located = identify(folder)
    checkpoint = FloatCheckpoint.open(located.path)
    for name in llama_shapes(checkpoint.config):
        checkpoint.read(name.removesuffix(".weight"))


def _write_adapter(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_adapter(
            folder,
            adapter_matrices(CONFIG, ("W_pack", "up_proj")),
            settings={"alpha_pattern": {"up_proj": 4}},
        )
        return folder / name

    return write


def _read_adapter(folder: Path) -> None:
    adapter = Adapter(folder, CONFIG)
    name = "model.layers.0.self_attn.k_proj"
    adapter.merge(name, 0, float_weights(CONFIG, 0)[f"{name}.weight"])


def _write_official(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_official(folder, CONFIG)
        return folder / name

    return write


def _write_packed(
    settings: dict[str, object], pack: Callable[[Integers], Arrays], name: str
) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_foreign(folder, settings, pack)
        return folder / name

    return write


def _write_4bits(write_all: Callable[[Path], object], name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_all(folder)
        return folder / name

    return write


def _read_floats(folder: Path) -> None:
    identify(folder)
    checkpoint = FloatCheckpoint.open(folder)
    checkpoint.read("model.norm")
    checkpoint.read("model.layers.0.self_attn.q_proj")


def _write_quantized(pattern: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        source = folder.with_name(f"{folder.name}-source")
        source.mkdir()
        write_llama_safetensors(source, rope_config())
        folder.rmdir()
        quantize(source, folder, bits=4, method="search")
        return min(folder.glob(pattern))

    return write


def _read_quantized(folder: Path) -> None:
    identify(folder)
    with QuantizedCheckpoint(folder) as checkpoint:
        checkpoint.linear("model.layers.0.self_attn.q_proj")
    read_settings(folder)


def _write_config(folder: Path) -> Path:
    write_config(folder, CONFIG)
    return folder / "config.json"


def _read_config(folder: Path) -> ModelConfig:
    return ModelConfig.from_json(read_json(folder / "config.json"))


def _write_settings(folder: Path) -> Path:
    values = {"temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05, "eos_token_id": [2]}
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder / "generation_config.json"


def _write_bpe(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_bpe(folder)
        return folder / name

    return write


def _write_sentencepiece(folder: Path) -> Path:
    write_sentencepiece(folder)
    return folder / "tokenizer.model"


def _read_tokenizer(folder: Path) -> None:
    tokenizer = open_tokenizer(folder)
    tokenizer.decode(tokenizer.encode("你好, Hello <|im_end|>"))


def _write_manifest(folder: Path) -> Path:
    bundle_manifest().write(folder)
    return folder / "manifest.json"


def _read_manifest(folder: Path) -> None:
    Manifest.read(folder).verify(folder)


def _write_record(folder: Path) -> Path:
    (folder / ".fetch").mkdir()
    files = {"config.json": RecordedFile(2, "0" * 64, 1)}
    Record("huggingface", "a/b", "main", ("config.json",), files).write(folder)
    return folder / ".fetch" / "record.json"


def _read_record(folder: Path) -> None:
    record = Record.read(folder)
    if record is not None:
        record.is_whole(folder)


def _write_toolchain(folder: Path) -> Path:
    (folder / "bin").mkdir()
    (folder / "bin" / "tool").write_bytes(b"tool")
    files = {"bin/tool": digest_file(folder / "bin" / "tool")}
    ToolchainRecord("compiler", "1.30.2", "0" * 64, files).write(folder)
    return folder / "toolchain.json"


def _read_toolchain(folder: Path) -> None:
    record = ToolchainRecord.read(folder)
    if record is not None:
        record.first_damaged(folder)


def _write_compile_journal(folder: Path) -> Path:
    (folder / "units").mkdir()
    journal = CompileJournal.open(folder, _TASK)
    journal.skeleton(_UNIT).write_bytes(b"skeleton")
    journal.weights(_UNIT).write_bytes(b"weights")
    digests = digest_file(journal.skeleton(_UNIT)), digest_file(journal.weights(_UNIT))
    journal.add(_UNIT, FinishedUnit(*digests, "c0de", (NetCost(_UNIT, 1, 64, 0.5, 100, 200),)))
    journal.add_moved(_UNIT, 3)
    return folder / "journal.json"


def _write_quantize_journal(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(b"tensors")
    journal = QuantizeJournal.open(folder / "journal.json", QuantizationConfig(4), [])
    journal.add(folder / "a.safetensors")
    return folder / "journal.json"


def _read_quantize_journal(folder: Path) -> None:
    QuantizeJournal.open(folder / "journal.json", QuantizationConfig(4), [])


def _write_chat(folder: Path) -> Path:
    with _conversation() as conversation:
        conversation.chat("hello")
        conversation.save(folder / "chat.json")
    return folder / "chat.json"


def _read_chat(folder: Path) -> None:
    with _conversation() as conversation:
        conversation.load(folder / "chat.json")


def _conversation() -> Conversation:
    tokenizer = ByteTokenizer()
    engine = ScriptedEngine(tokenizer.vocabulary_size)
    engine.enqueue_ids([*b"hi", tokenizer.END_ID])
    template = BaichuanTemplate(tokenizer, 257, 258)
    return Conversation(engine, tokenizer, template, GenerationSettings(max_tokens=6))


def _write_bmodel(folder: Path) -> Path:
    return write_bmodel(folder / "a.bmodel", [b"first" * 2000, b"second" * 1000, b"first" * 2000])


def _read_bmodel_header(folder: Path) -> None:
    BmodelFile.read(folder / "a.bmodel")


def _read_bmodel_weights(folder: Path) -> None:
    detach_weights(folder / "a.bmodel", folder / "skeleton.bmodel")
    places = {stage.weights.code: (1 << 16, 1) for stage in read_stages(folder / "skeleton.bmodel")}
    fill_skeleton(folder / "skeleton.bmodel", folder / "whole.bmodel", places, 1 << 17)


def _read_gguf_tokenizer(folder: Path) -> None:
    metadata = GgufFile(folder / "model.gguf").metadata
    check_tokenizer(folder / "model.gguf", metadata)
    write_tokenizer(metadata, folder)
    _read_tokenizer(folder)


def _remote_file() -> RemoteFile:
    return RemoteFile("a.bin", 1 << 16, Digest("sha256", "0" * 64))


def _write_part(folder: Path) -> Path:
    with PartFile(folder, _remote_file()) as part:
        for start in range(0, 1 << 15, 1 << 12):
            part.write(start, bytes(1 << 12))
            part.add(Piece(start, start + (1 << 12)))
    return folder / "a.bin.part.journal"


def _read_part(folder: Path) -> None:
    with PartFile(folder, _remote_file()) as part:
        part.missing(1 << 12)


READERS: dict[str, Reader] = {
    "safetensors": Reader(_write_safetensors, _read_safetensors),
    "torch": Reader(_write_torch, _read_torch),
    "gguf": Reader(_write_gguf, _read_gguf),
    "gguf tokenizer": Reader(_write_gguf, _read_gguf_tokenizer),
    "gguf pieces": Reader(_write_baichuan_gguf, _read_gguf_tokenizer),
    "gguf parts": Reader(_write_split_gguf, _read_gguf),
    "adapter settings": Reader(_write_adapter("adapter_config.json"), _read_adapter),
    "adapter weights": Reader(_write_adapter("adapter_model.safetensors"), _read_adapter),
    "bmodel header": Reader(_write_bmodel, _read_bmodel_header),
    "bmodel weights": Reader(_write_bmodel, _read_bmodel_weights),
    "official config": Reader(_write_official("config.json"), _read_floats),
    "official index": Reader(_write_official("pytorch_model.bin.index.json"), _read_floats),
    "quantised config": Reader(_write_quantized("config.json"), _read_quantized),
    "quantised index": Reader(_write_quantized("*.index.json"), _read_quantized),
    "quantised weights": Reader(_write_quantized("model-*.safetensors"), _read_quantized),
    "GPTQ config": Reader(_write_packed(_GPTQ, pack_gptq, "config.json"), _read_floats),
    "GPTQ weights": Reader(_write_packed(_GPTQ, pack_gptq, "model.safetensors"), _read_floats),
    "AWQ weights": Reader(_write_packed(_AWQ, pack_awq, "model.safetensors"), _read_floats),
    "compressed config": Reader(_write_packed(_COMPRESSED, _pack_compressed, "config.json"), _read_floats),
    "compressed weights": Reader(
        _write_packed(_COMPRESSED, _pack_compressed, "model.safetensors"), _read_floats
    ),
    "official 4 bits": Reader(_write_4bits(write_official_4bits, "pytorch_model.bin"), _read_floats),
    "transformers 4 bits": Reader(_write_4bits(write_transformers_4bits, "model.safetensors"), _read_floats),
    "quantised head": Reader(_write_quantized("quantized_head.safetensors"), _read_quantized),
    "config": Reader(_write_config, _read_config),
    "generation config": Reader(_write_settings, read_settings),
    "tokenizer.json": Reader(_write_bpe("tokenizer.json"), _read_tokenizer),
    "tokenizer_config.json": Reader(_write_bpe("tokenizer_config.json"), _read_tokenizer),
    "tokenizer.model": Reader(_write_sentencepiece, _read_tokenizer),
    "manifest": Reader(_write_manifest, _read_manifest),
    "record": Reader(_write_record, _read_record),
    "part of a download": Reader(_write_part, _read_part),
    "toolchain record": Reader(_write_toolchain, _read_toolchain),
    "compile journal": Reader(_write_compile_journal, lambda folder: CompileJournal.open(folder, _TASK)),
    "quantise journal": Reader(_write_quantize_journal, _read_quantize_journal),
    "saved chat": Reader(_write_chat, _read_chat),
}
