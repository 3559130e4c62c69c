"""The small files of a quantised checkpoint: config, generation settings, index and tokenizer.

No ``.py`` file is ever copied, and no file names one: nothing in a checkpoint is code to us.
Source: ``generation_config.json`` of Baichuan2-7B-Chat for the defaults.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.formats.gguf_tokenizer import check_tokenizer, write_tokenizer
from baichuan2_tpu.checkpoint.formats.safetensors_file import SafetensorsFile
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import find_json, write_json
from baichuan2_tpu.quantize.plan import Plan
from baichuan2_tpu.quantize.tokenizer_json import write_tokenizer_json

__all__ = ["check_assets", "write_assets"]

_SENTENCEPIECE = "tokenizer.model"
_JSON = "tokenizer.json"
_TOKENIZERS = (_SENTENCEPIECE, _JSON)
_TOKENIZER_CONFIG = "tokenizer_config.json"
_COPIED = (
    *_TOKENIZERS,
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_CODE_KEY = "auto_map"  # names the official checkpoints' own classes, in files that are not copied
_BAICHUAN2_CHAT: dict[str, object] = {
    "max_new_tokens": 2048,
    "temperature": 0.3,
    "top_k": 5,
    "top_p": 0.85,
    "repetition_penalty": 1.05,
    "do_sample": True,
}
_GREEDY: dict[str, object] = {"do_sample": False, "repetition_penalty": 1.0}


def check_assets(checkpoint: FloatCheckpoint) -> None:
    """Check, before any work, that the source has a tokenizer that can be carried over.

    Raises: CheckpointError saying what was looked for, or what is damaged.
    """
    source = checkpoint.path
    if checkpoint.metadata is not None:
        check_tokenizer(source, checkpoint.metadata)
    elif not any((source / name).is_file() for name in _TOKENIZERS):
        raise CheckpointError(
            f"{source}: holds neither {' nor '.join(_TOKENIZERS)}; fetch the tokenizer of the model"
        )
    else:
        find_json(source / _TOKENIZER_CONFIG)


def write_assets(checkpoint: FloatCheckpoint, directory: Path, plan: Plan) -> None:
    """Write everything but the weights."""
    source, config = checkpoint.path, checkpoint.config
    if checkpoint.metadata is not None:
        write_tokenizer(checkpoint.metadata, directory)
    else:
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
        _write_tokenizer_config(source, directory)
    if not (directory / "generation_config.json").exists():
        defaults = _BAICHUAN2_CHAT if config.is_head_normalized else _GREEDY
        ids: dict[str, object] = {"bos_token_id": config.bos_id, "eos_token_id": list(config.eos_ids)}
        write_json(directory / "generation_config.json", defaults | ids)
    write_json(directory / "model.safetensors.index.json", _index(directory, plan))
    merged = [adapter.record for adapter in checkpoint.adapters]
    values = plan.config.to_json() | ({"merged_adapters": merged} if merged else {})
    write_json(directory / "config.json", values)


def _write_tokenizer_config(source: Path, directory: Path) -> None:
    """Write the tokenizer's settings with a class that needs no code out of the checkpoint."""
    values = find_json(source / _TOKENIZER_CONFIG) or {}
    if values.pop(_CODE_KEY, None) is not None:
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if not (directory / _JSON).exists():
        written = write_tokenizer_json(directory / _SENTENCEPIECE, directory / _JSON)
        values = written | values | {key: written[key] for key in written.keys() & {"tokenizer_class"}}
    write_json(directory / _TOKENIZER_CONFIG, values, ensure_ascii=False)


def _index(directory: Path, plan: Plan) -> dict[str, object]:
    """Return the index of the files that other tools read too, from their headers."""
    weight_map: dict[str, str] = {}
    shards = plan.shards[:-1]
    for shard in shards:
        file = SafetensorsFile(directory / shard.file)
        weight_map |= dict.fromkeys(file.tensors, shard.file)
        file.close()
    total = sum(shard.size_bytes for shard in shards)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
