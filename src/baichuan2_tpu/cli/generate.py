"""``baichuan2 generate``: one answer to one prompt, as text or as a JSON object.

Not here: choosing tokens (``baichuan2_tpu.generate``).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.models import open_chat_model
from baichuan2_tpu.cli.show_answer import show_answer
from baichuan2_tpu.cli.terminal import reading_line, write_result
from baichuan2_tpu.errors import RequestError

__all__ = ["generate"]


def generate(
    model: options.Model,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads standard input.")
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", help="Read the prompt from this file instead.", allow_dash=True)
    ] = None,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    context: options.Context = None,
    threads: options.Threads = None,
    engine: options.Engine = options.EngineName.AUTO,
    device: options.Device = 0,
    exact: options.Exact = False,
    kv: options.Kv = None,
    keep_packed: options.KeepPacked = True,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Answer one prompt on standard output.

    --json prints one object: model, engine, text, token_ids, finish_reason, stats.
    """
    from baichuan2_tpu.generate.settings import GivenSettings
    from baichuan2_tpu.model import EngineSettings

    text = _read_prompt(prompt, file)
    running = EngineSettings(
        engine.value, device, context, threads, exact, kv.bits if kv else None, keep_packed
    )
    given = GivenSettings(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
    )
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    with open_chat_model(model, running, given) as opened:
        if not as_json:
            show_answer(lambda draw: opened.stream(messages, progress=draw, **given))
            return
        with reading_line() as draw:
            result = opened.chat(messages, progress=draw, **given)
        facts = {"model": model, "engine": opened.engine.name, **asdict(result)}
        write_result(json.dumps(facts, ensure_ascii=False) + "\n")


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    """Return the one prompt that was given; out of a file or standard input, without the last line feed."""
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give either PROMPT (- reads standard input) or --file")
    if prompt is not None and prompt != "-":
        text = prompt
    else:
        from baichuan2_tpu.text.user_text import read_user_text

        text = read_user_text(file or Path("-")).removesuffix("\n")
    if not text.strip():
        raise RequestError("the prompt is empty; write something to answer")
    return text
