"""A server of the acting engine on a free port, in threads of this process.

By hand: ``PYTHONPATH=src:tests python -m clients.acting_server`` serves until its input ends.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import replace

from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.service import RequestRules, Service
from baichuan2_tpu.text.template import BaichuanTemplate
from clients.acting_engine import ActingEngine, ActingTokenizer
from running.served import fake_model, listening

__all__ = ["acting_server"]

_MAX_TOKENS = 8000  # for clients that name no limit


@contextmanager
def acting_server(rules: RequestRules | None = None) -> Generator[str, None, None]:
    """Serve the acting engine, and yield the address."""
    engine, tokenizer = ActingEngine(), ActingTokenizer()
    model = fake_model(engine)
    user_id, assistant_id = (tokenizer.END_ID + 1, tokenizer.END_ID + 2)
    model = replace(
        model,
        tokenizer=tokenizer,
        template=BaichuanTemplate(tokenizer, user_id, assistant_id),
        settings=replace(model.settings, max_tokens=_MAX_TOKENS),
    )
    with (
        Scheduler(engine, model.tokenizer) as scheduler,
        closing(Service(model, scheduler, rules=rules)) as service,
        listening(create_app(service)) as url,
    ):
        yield url


if __name__ == "__main__":
    with acting_server() as address:
        print(address, flush=True)  # noqa: T201
        sys.stdin.read()
