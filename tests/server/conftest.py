"""A tiny random model on the cpu engine, served by uvicorn on a free port of this machine."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import openai
import pytest

from baichuan2_tpu.model import load
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.service import ServedModel, Service
from models.tiny_checkpoint import rope_config, write_official
from models.tiny_tokenizer import write_sentencepiece
from running.served import listening

MODEL = "Tiny-Chat"


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Baichuan2 in small; its weights are random, so it talks nonsense."""
    directory = tmp_path_factory.mktemp("models") / MODEL
    write_official(directory, rope_config(vocabulary_size=400, max_context=1024))
    write_sentencepiece(directory)
    quantized = directory.with_name(f"{MODEL}-w4")
    quantize(directory, quantized, bits=4, method="search")
    return quantized


@pytest.fixture(scope="session")
def service(model_directory: Path) -> Generator[Service, None, None]:
    with (
        load(model_directory, threads=1) as model,
        Scheduler(model.engine, model.tokenizer) as scheduler,
    ):
        service = Service(ServedModel.of(model, MODEL), scheduler)
        yield service
        service.stop(grace_s=0)


@pytest.fixture(scope="session")
def url(service: Service) -> Generator[str, None, None]:
    with listening(create_app(service)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Generator[openai.OpenAI, None, None]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client
