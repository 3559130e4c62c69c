"""A bundle folder with a manifest and all its files, whose bmodel is no bmodel: enough up to loading it."""

from __future__ import annotations

import shutil
from pathlib import Path

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.files import digest_file
from baichuan2_tpu.manifest import Manifest, Stage

__all__ = ["write_fake_bundle"]

_CARRIED_OVER = ("config.json", "generation_config.json", "tokenizer.model")


def write_fake_bundle(
    folder: Path, checkpoint: Path, *, context: int = 64, chip: str = "bm1684x"
) -> Manifest:
    """Write the folder as if ``checkpoint`` had been compiled."""
    folder.mkdir()
    for name in _CARRIED_OVER:
        shutil.copyfile(checkpoint / name, folder / name)
    (folder / "model.bmodel").write_bytes(b"no bmodel" * 100)
    (folder / "embedding.bin").write_bytes(bytes(100))
    manifest = Manifest(
        model=ModelConfig.read(folder / "config.json"),
        bits=4,
        head="w8",
        head_output="logits",
        embedding="disk",
        dtype="float16",
        context=context,
        rows=context,
        stages=(Stage(1, context), Stage(16, context)),
        head_rows=(1,),
        layers_per_net=1,
        group_size=64,
        devices=1,
        chip=chip,
        bmodel="model.bmodel",
        device_bytes=123_000_000,
        source="Tiny-Chat sha256:0",
        tools={"tpu_mlir": "1.30.2"},
        costs=(),
        files={file.name: digest_file(file) for file in sorted(folder.iterdir())},
    )
    manifest.write(folder)
    return manifest
