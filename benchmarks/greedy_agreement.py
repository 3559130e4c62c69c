"""Greedy answers of the CPU engine beside llama.cpp's, from the same GGUF and the same prompt ids.

The engine has the weights at 8 bits, llama.cpp has the GGUF's own. Where two answers part, the gap between
the two best logits tells whether it was a close call, and the float model says what it would have taken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.engine.base import Chunk, Engine
from baichuan2_tpu.model import EngineSettings, ModelFiles
from baichuan2_tpu.reference.float_model import FloatModel
from baichuan2_tpu.resolve import ResolveSettings, find_source, resolve_model
from baichuan2_tpu.text.messages import Message
from baichuan2_tpu.text.tokenizer import Tokenizer
from peers.protocol import Choice, choose

BENCHMARKS = Path(__file__).resolve().parent
CONTEXT = 512
PROMPTS = (
    "What is the capital of France? Answer in one sentence.",
    "Name three primary colours.",
    "Write a short poem about the sea.",
    "Explain what a compiler does in two sentences.",
    "What is 7 times 8?",
    "Translate 'good morning' into Spanish.",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Write a Python function that reverses a string.",
    "Who wrote Romeo and Juliet?",
)


@dataclass(frozen=True, slots=True)
class Parting:
    """The choices at the first token that differs; ``judged`` is the float model's."""

    index: int
    ours: Choice
    theirs: Choice
    judged: Choice


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, and where they part, if they do."""

    prompt: str
    ours: list[Choice]
    theirs: list[Choice]
    parting: Parting | None

    def to_json(self) -> dict[str, object]:
        """Return both answers and the parting."""
        return {
            "prompt": self.prompt,
            "our_ids": [choice.token for choice in self.ours],
            "their_ids": [choice.token for choice in self.theirs],
            "parting": asdict(self.parting) if self.parting else None,
        }


def main() -> None:
    """Answer every prompt on both sides, print a table and, if asked, one JSON object as the last line."""
    given = parse_arguments()
    source = find_source(given.model, tell).path
    located = resolve_model(given.model, ResolveSettings(bits=8), notice=tell)
    files = ModelFiles.read(given.model, located)
    tokenizer, template = files.tokenizer, files.require_template()
    room = CONTEXT - given.tokens
    prompts = [list(template.render([Message("user", text)], room).ids) for text in PROMPTS]
    stop_ids = sorted(template.stop_ids | tokenizer.stop_ids)
    with files.open(EngineSettings(context=CONTEXT, threads=given.threads)) as model:
        ours = [answer(model.engine, ids, given.tokens, stop_ids) for ids in prompts]
    job = {"path": str(source), "prompts": prompts, "stop_ids": stop_ids, "context": CONTEXT}
    theirs = ask_llama({**job, "tokens": given.tokens, "threads": given.threads}, given.peer_python)
    judge = FloatModel(FloatCheckpoint.open(source))
    rows = [
        compare(text, ids, mine, other, judge)
        for text, ids, mine, other in zip(PROMPTS, prompts, ours, theirs, strict=True)
    ]
    print(f"{source.name}: ours at 8 bits, llama.cpp as it is; {given.tokens} greedy tokens or to the end")
    print("\n".join(table(rows, tokenizer)))
    if given.json:
        print(json.dumps({"model": source.name, "prompts": [row.to_json() for row in rows]}))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="demo", help="known name or .gguf file")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has llama.cpp (this)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args()


def answer(engine: Engine, prompt: list[int], tokens: int, stop_ids: list[int]) -> list[Choice]:
    """Return the engine's greedy choices after a prompt, up to a stop id, which is the last."""
    with engine.open_sequence() as sequence:
        choices = [choose(engine.forward([Chunk(sequence, prompt)])[0][-1])]
        while len(choices) < tokens and choices[-1].token not in stop_ids:
            choices.append(choose(engine.forward([Chunk(sequence, [choices[-1].token])])[0][-1]))
    return choices


def compare(
    text: str, prompt: list[int], ours: list[Choice], theirs: list[Choice], judge: FloatModel
) -> Comparison:
    """Find where two answers part, and ask the float model for its own choice there."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    index = next((index for index, (mine, other) in pairs if mine.token != other.token), None)
    if index is None:
        return Comparison(text, ours, theirs, None)
    # Up to here both answers are the same, so this prefix is what either side saw.
    behind = judge.run(np.array([[*prompt, *(choice.token for choice in ours[:index])]]))
    rows = judge.logits(behind[0, -1:])
    return Comparison(text, ours, theirs, Parting(index, ours[index], theirs[index], choose(rows[-1])))


def ask_llama(job: dict[str, Any], python: str) -> list[list[Choice]]:
    """Let llama.cpp answer in a process of its own."""
    run = subprocess.run(
        [python, "-m", "peers.llama_greedy"],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        cwd=BENCHMARKS,
        check=False,
    )
    if run.returncode:
        sys.exit(
            f"error: llama.cpp did not answer (its message is above); if it is not installed for {python}, "
            "run: pip install -r benchmarks/requirements.txt"
        )
    return [[Choice(*choice) for choice in answers] for answers in json.loads(run.stdout)]


def table(rows: list[Comparison], tokenizer: Tokenizer) -> list[str]:
    """Return the lines of a Markdown table; texts are quoted, so that each stays on its line."""
    heads = ("prompt", "same tokens", "ours (gap)", "theirs (gap)", "float (gap)", "our answer")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row.prompt, f"{len(row.ours)} of {len(row.ours)}", "", "", ""]
        if row.parting is not None:
            choices = (row.parting.ours, row.parting.theirs, row.parting.judged)
            cells = [row.prompt, f"{row.parting.index} of {len(row.ours)}"]
            cells += [described(choice, tokenizer) for choice in choices]
        cells.append(repr(tokenizer.decode(choice.token for choice in row.ours)))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, summary(rows)]


def summary(rows: list[Comparison]) -> str:
    """Return how many answers are the same, and with whom the float model sides in the others."""
    parted = [row.parting for row in rows if row.parting is not None]
    with_ours = sum(parting.judged.token == parting.ours.token for parting in parted)
    with_theirs = sum(parting.judged.token == parting.theirs.token for parting in parted)
    return (
        f"{len(rows) - len(parted)} of {len(rows)} answers are the same to the end; "
        f"where they part, float32 takes our token {with_ours} times and theirs {with_theirs} times"
    )


def described(choice: Choice, tokenizer: Tokenizer) -> str:
    """Return a token's text with its lead over the second."""
    return f"{tokenizer.decode([choice.token])!r} ({choice.gap:.3f})"


def tell(step: str) -> None:
    """Say on stderr what is going on."""
    print(step, file=sys.stderr)


if __name__ == "__main__":
    main()
