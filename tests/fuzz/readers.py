"""Every reader of a stranger's file, with a small whole file to start from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFWriter

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.gguf_file import GgufFile
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.checkpoint.safetensors_file import SafetensorsFile
from baichuan2_tpu.checkpoint.torch_file import TorchFile
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.fetch.record import Record, RecordedFile
from baichuan2_tpu.files import read_json
from baichuan2_tpu.generate.settings import read_settings
from baichuan2_tpu.manifest import Manifest
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.text.registry import open_tokenizer
from models.bundle_manifest import bundle_manifest
from models.tiny_checkpoint import (
    float_weights,
    rope_config,
    write_bin,
    write_config,
    write_llama_safetensors,
    write_official,
    write_safetensors_bf16,
)
from models.tiny_tokenizer import write_bpe, write_sentencepiece

__all__ = ["READERS", "Reader"]

CONFIG = rope_config(vocabulary_size=264)


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
    writer = GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(CONFIG.layers)
    writer.add_context_length(CONFIG.max_context)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.heads)
    writer.add_layer_norm_rms_eps(CONFIG.norm_eps)
    writer.add_token_list([f"token{index}" for index in range(20)])
    writer.add_token_types([1] * 20)
    for name, tensor in list(float_weights(CONFIG, 0).items())[:4]:
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def _read_gguf(folder: Path) -> None:
    file = GgufFile(folder / "model.gguf")
    for name in file.tensors:
        file.read(name)


def _write_official(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_official(folder, CONFIG)
        return folder / name

    return write


def _read_floats(folder: Path) -> None:
    identify(folder)
    checkpoint = FloatCheckpoint.open(folder)
    checkpoint.read("model.norm")


def _write_quantized(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        source = folder.with_name(f"{folder.name}-source")
        source.mkdir()
        write_llama_safetensors(source, rope_config())
        folder.rmdir()
        quantize(source, folder, bits=4)
        return folder / name

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


READERS: dict[str, Reader] = {
    "safetensors": Reader(_write_safetensors, _read_safetensors),
    "torch": Reader(_write_torch, _read_torch),
    "gguf": Reader(_write_gguf, _read_gguf),
    "official config": Reader(_write_official("config.json"), _read_floats),
    "official index": Reader(_write_official("pytorch_model.bin.index.json"), _read_floats),
    "quantised config": Reader(_write_quantized("config.json"), _read_quantized),
    "quantised weights": Reader(_write_quantized("model.safetensors"), _read_quantized),
    "config": Reader(_write_config, _read_config),
    "generation config": Reader(_write_settings, read_settings),
    "tokenizer.json": Reader(_write_bpe("tokenizer.json"), _read_tokenizer),
    "tokenizer_config.json": Reader(_write_bpe("tokenizer_config.json"), _read_tokenizer),
    "tokenizer.model": Reader(_write_sentencepiece, _read_tokenizer),
    "manifest": Reader(_write_manifest, _read_manifest),
    "record": Reader(_write_record, _read_record),
}
