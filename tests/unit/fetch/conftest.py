"""A hub on this machine that a fetch finds through the user's usual environment variables."""

import os
import random
from collections.abc import Generator
from pathlib import Path

import pytest

from baichuan2_tpu.fetch.models import FetchSettings
from baichuan2_tpu.fetch.transfer.client import Patience
from baichuan2_tpu.fetch.transfer.download import DownloadSettings
from doubles.fault_server import PIECE_BYTES, WEIGHTS, FaultyHub, serve_hub

IMPATIENT = Patience(
    attempts=4, first_wait_s=0.0, longest_wait_s=0.01, connect_timeout_s=5.0, read_timeout_s=0.3
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[FaultyHub, None, None]:
    """One repository on both hubs: small files, a tokenizer and weights of many pieces, and code."""
    for name in [name for name in os.environ if name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = random.Random(0)
    files = {
        "config.json": b'{"model_type": "baichuan"}',
        "generation_config.json": b"{}",
        "modeling_baichuan.py": b"raise SystemExit('code of a stranger')",
        "tokenizer.model": source.randbytes(5000),
        WEIGHTS: source.randbytes(10 * PIECE_BYTES + 77),
    }
    with serve_hub(files) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.hub_url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.hub_url)
        yield served


@pytest.fixture
def settings(tmp_path: Path) -> FetchSettings:
    """Small pieces, few attempts, no waiting."""
    download = DownloadSettings(connections=3, piece_bytes=PIECE_BYTES, patience=IMPATIENT)
    return FetchSettings(folder=tmp_path / "model", download=download)


@pytest.fixture
def folder(settings: FetchSettings) -> Path:
    assert settings.folder is not None
    return settings.folder
