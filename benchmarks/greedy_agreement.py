"""Compare greedy answers of the CPU engine with llama.cpp's, from the same GGUF and the same prompt ids.

The engine runs the weights at 8 bits, llama.cpp the GGUF as it is. Where two answers diverge, the gap between
the two best logits shows whether it was a close call, and the float model gives the token it would choose.
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
class Divergence:
    """The choices at the first token that differs; ``reference`` is the float model's."""

    index: int
    ours: Choice
    theirs: Choice
    reference: Choice


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, and where they diverge, if they do."""

    prompt: str
    ours: list[Choice]
    theirs: list[Choice]
    divergence: Divergence | None

    def to_json(self) -> dict[str, object]:
        """Return both answers and where they diverge."""
        return {
            "prompt": self.prompt,
            "our_ids": [choice.token for choice in self.ours],
            "their_ids": [choice.token for choice in self.theirs],
            "divergence": asdict(self.divergence) if self.divergence else None,
        }


def main() -> None:
    """Answer every prompt on both sides, print a table and, with --json, one JSON object as the last line."""
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
    print(f"{source.name}: ours at 8 bits, llama.cpp as it is; {given.tokens} greedy tokens at most")
    print("\n".join(table(rows, tokenizer)))
    if given.json:
        print(json.dumps({"model": source.name, "prompts": [row.to_json() for row in rows]}))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="demo", help="known name or .gguf file")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with llama.cpp (this one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
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
    return Comparison(text, ours, theirs, Divergence(index, ours[index], theirs[index], choose(rows[-1])))


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
        if row.divergence is not None:
            choices = (row.divergence.ours, row.divergence.theirs, row.divergence.reference)
            cells = [row.prompt, f"{row.divergence.index} of {len(row.ours)}"]
            cells += [describe(choice, tokenizer) for choice in choices]
        cells.append(repr(tokenizer.decode(choice.token for choice in row.ours)))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, summary(rows)]


def summary(rows: list[Comparison]) -> str:
    """Return how many answers are the same, and with which side the float model agrees in the others."""
    divergences = [row.divergence for row in rows if row.divergence is not None]
    with_ours = sum(divergence.reference.token == divergence.ours.token for divergence in divergences)
    with_theirs = sum(divergence.reference.token == divergence.theirs.token for divergence in divergences)
    return (
        f"{len(rows) - len(divergences)} of {len(rows)} answers are the same to the end; "
        f"where they diverge, float32 chooses our token {with_ours} times and theirs {with_theirs} times"
    )


def describe(choice: Choice, tokenizer: Tokenizer) -> str:
    """Return a token's text with its lead over the second choice."""
    return f"{tokenizer.decode([choice.token])!r} ({choice.gap:.3f})"


def tell(step: str) -> None:
    """Print progress on stderr."""
    print(step, file=sys.stderr)


if __name__ == "__main__":
    main()
