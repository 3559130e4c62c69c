"""Our server with the random weights of a shape: the package's own app and scheduler, no checkpoint on disk.

The tokens are made up, one word each, and none of them ends an answer.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from typing import TextIO

from baichuan2_tpu import __version__
from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.scheduling.load import SchedulerSettings
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.service import ServedModel, Service
from baichuan2_tpu.server.transport.ending import Ending
from baichuan2_tpu.server.transport.listening import Address, bind, serve
from baichuan2_tpu.shapes import shape_config
from baichuan2_tpu.text.template import BaichuanTemplate
from baichuan2_tpu.text.tokenizer import Tokenizer

MODEL = "random"


class WordTokenizer(Tokenizer):
    """Id 7 is the word "token7 "."""

    def __init__(self, vocabulary_size: int) -> None:
        self._size = vocabulary_size

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""
        return self._size

    @property
    def stop_ids(self) -> frozenset[int]:
        """No ids: every answer has its full length."""
        return frozenset()

    @property
    def longest_token(self) -> int:
        """One character."""
        return 1

    def encode(self, text: str) -> list[int]:
        """Return one id per character; the benchmark itself sends ids."""
        return [3 + ord(character) % 200 for character in text]

    def token_bytes(self, token_id: int) -> bytes:
        """Return a word."""
        return f"token{token_id} ".encode()

    def control_id(self, name: str) -> None:
        """Return None: there are no control ids."""


def main() -> None:
    """Serve until standard input ends."""
    given = json.loads(sys.argv[1])
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    config = replace(shape_config(given["shape"], given["bits"]), layers=given["layers"], eos_ids=())
    tokenizer = WordTokenizer(config.vocabulary_size)
    weights = RandomWeights(config)
    with (
        Ending(grace_s=0) as ending,
        CpuEngine(weights, context=given["context"], threads=given["threads"]) as engine,
        Scheduler(engine, tokenizer, SchedulerSettings(given["running"])) as scheduler,
        bind(Address(port=0)) as listener,
    ):
        # The template is not used: prompts are ids.
        template = BaichuanTemplate(tokenizer, 1, 2)
        settings = GenerationSettings(SamplingSettings(temperature=0))
        model = ServedModel(MODEL, engine.name, tokenizer, template, settings, engine.max_context)
        service = Service(model, scheduler)
        url = Address().url(listener)
        threading.Thread(target=_stop_with_input, daemon=True).start()
        serve(
            create_app(service),
            service,
            Address(),
            listener,
            ending=ending,
            when_ready=lambda: _tell(results, url),
        )


def _tell(results: TextIO, url: str) -> None:
    print(json.dumps({"url": url, "version": f"baichuan2-tpu {__version__}"}), file=results, flush=True)


def _stop_with_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
