"""Perplexity of the quantised demo weights beside their float version, on prose that every CPython carries.

The same windows go through every version; the interval is a bootstrap over windows of the log ratio.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.floats import FloatCheckpoint
from baichuan2_tpu.checkpoint.quantized import QuantizedCheckpoint
from baichuan2_tpu.checkpoint.weights import Weights
from baichuan2_tpu.config import QuantizationConfig
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.float_model import FloatModel
from baichuan2_tpu.resolve import ResolveSettings, find_source, resolve_model
from baichuan2_tpu.text.registry import open_tokenizer
from plain_rounding import RoundedWeights

RESAMPLES = 10_000

ROWS_AT_ONCE = 64
"""Rows of logits held at once: memory that is asked for anew costs more here than the arithmetic on it."""

Logits = Callable[[list[int]], Iterator[NDArray[np.float32]]]
"""Yields the logits of a window's tokens in order, some rows at a time."""


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens to score, and how they are cut.

    Units: all in tokens. Of each window but the first only the last ``stride`` tokens count.
    """

    tokens: list[int]
    window: int
    stride: int

    def windows(self) -> Iterator[tuple[list[int], int]]:
        """Yield each window and the first of its tokens that counts; a window's own first has no past."""
        for start in range(0, len(self.tokens) - self.window + 1, self.stride):
            counted_from = 1 if start == 0 else max(1, self.window - self.stride)
            yield self.tokens[start : start + self.window], counted_from


@dataclass(frozen=True, slots=True)
class Score:
    """Negative log likelihood, in nats, and number of tokens of every window."""

    losses: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss."""
        return math.exp(self.losses.sum() / self.counts.sum())


def main() -> None:
    """Score every version, print a table and, if asked, one JSON object as the last line."""
    given = parse_arguments()
    source = find_source(given.model, tell)
    directories = {bits: quantized(given.model, bits) for bits in (4, 8)}
    text = read_text(directories[8], given.tokens, given.window, given.stride)
    checkpoint = FloatCheckpoint.open(source)
    tell("scoring the float weights")
    reference = score_float(checkpoint, text)
    print(f"{source.name}: {reference.counts.sum()} tokens of pydoc_data.topics (Python ", end="")
    print(f"{platform.python_version()}), window {text.window}, stride {text.stride}")
    rows = {"float32": compared(reference, reference)}
    for name, (weights, is_exact) in versions(directories, checkpoint).items():
        tell(f"scoring {name}")
        rows[name] = compared(score_weights(weights(), text, is_exact=is_exact), reference)
    print("\n".join(table(rows)))
    if given.json:
        settings = {"model": source.name, "window": text.window, "stride": text.stride}
        settings |= {"tokens": int(reference.counts.sum()), "text_sha256": fingerprint(text.tokens)}
        print(json.dumps({**settings, "versions": rows}))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="demo", help="known name, .gguf file or checkpoint directory")
    parser.add_argument("--tokens", type=int, default=20_480, help="length of the text (20480)")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args()


def quantized(model: str, bits: int) -> Path:
    """Return the package's own quantised checkpoint, from the cache or made now."""
    return resolve_model(model, ResolveSettings(bits=8 if bits == 8 else 4), notice=tell)


def read_text(directory: Path, tokens: int, window: int, stride: int) -> Text:
    """Tokenise the language reference that Python's ``help()`` shows, topic after topic."""
    prose = "\n\n".join(topics[name] for name in sorted(topics))
    ids = open_tokenizer(directory).encode(prose)
    if len(ids) < tokens:
        sys.exit(f"error: the text has {len(ids)} tokens, {tokens} were asked for; lower --tokens")
    return Text(ids[:tokens], window, stride)


def versions(
    directories: dict[int, Path], checkpoint: FloatCheckpoint
) -> dict[str, tuple[Callable[[], Weights], bool]]:
    """Return what is compared, each opened when its turn comes, and whether in the engine's exact mode.

    The fast mode, which users get, rounds activations too; the exact one shows the share of the weights.
    """
    eight, four = (partial(QuantizedCheckpoint, directories[bits]) for bits in (8, 4))
    return {
        "8 bits": (eight, False),
        "8 bits, float activations": (eight, True),
        "4 bits": (four, False),
        "4 bits, float activations": (four, True),
        "4 bits, plain rounding": (partial(RoundedWeights, checkpoint, QuantizationConfig(4)), False),
    }


def score_float(checkpoint: FloatCheckpoint, text: Text) -> Score:
    """Score the float weights, all windows at once."""
    model = FloatModel(checkpoint)
    windows = iter(model.run(np.array([tokens for tokens, _ in text.windows()])))

    def logits(tokens: list[int]) -> Iterator[NDArray[np.float32]]:
        states = next(windows)  # they are scored in their order
        for start in range(0, len(tokens), ROWS_AT_ONCE):
            yield model.logits(states[start : start + ROWS_AT_ONCE])

    return score(logits, text)


def score_weights(weights: Weights, text: Text, *, is_exact: bool) -> Score:
    """Score quantised weights in the CPU engine."""
    with CpuEngine(weights, context=text.window, is_exact=is_exact) as engine:

        def logits(tokens: list[int]) -> Iterator[NDArray[np.float32]]:
            with engine.open_sequence() as sequence:
                for start in range(0, len(tokens), ROWS_AT_ONCE):
                    piece = tokens[start : start + ROWS_AT_ONCE]
                    yield engine.forward([Chunk(sequence, piece, logit_rows=len(piece))])[0]

        return score(logits, text)


def score(logits: Logits, text: Text) -> Score:
    """Return the loss of every window."""
    losses: list[float] = []
    counts: list[int] = []
    for tokens, first in text.windows():
        losses.append(window_loss(logits, tokens, first))
        counts.append(len(tokens) - first)
    return Score(np.array(losses), np.array(counts))


def window_loss(logits: Logits, tokens: list[int], first: int) -> float:
    """Return the summed loss of the tokens from ``first`` on; a row of logits tells the next token."""
    total, position = 0.0, 1
    for rows in logits(tokens):
        skipped = max(0, first - position)
        targets = np.array(tokens[position : position + len(rows)], np.int64)
        total += loss(rows[skipped : len(targets)], targets[skipped:])
        position += len(rows)
    return total


def loss(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Return the summed negative log likelihood of ``targets``. Shapes: (T, V), (T,)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    picked = shifted[np.arange(len(targets)), targets].astype(np.float64)
    return float((np.log(np.exp(shifted).sum(axis=1, dtype=np.float64)) - picked).sum())


def compared(one: Score, reference: Score) -> dict[str, float]:
    """Return the perplexity and its rise over the reference, with a 95 % interval, in per cent."""
    differences = one.losses - reference.losses
    # Windows are resampled, not tokens: losses inside a window hang together.
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(differences), (RESAMPLES, len(differences)))
    means = differences[picks].sum(axis=1) / one.counts[picks].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {
        "perplexity": one.perplexity,
        "rise_percent": 100 * math.expm1(differences.sum() / one.counts.sum()),
        "rise_percent_low": 100 * math.expm1(low),
        "rise_percent_high": 100 * math.expm1(high),
    }


def table(rows: dict[str, dict[str, float]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| weights | perplexity | rise over float | 95 % interval |", "|---|---|---|---|"]
    for name, row in rows.items():
        interval = f"{row['rise_percent_low']:+.3f} to {row['rise_percent_high']:+.3f} %"
        lines.append(f"| {name} | {row['perplexity']:.4f} | {row['rise_percent']:+.3f} % | {interval} |")
    return lines


def fingerprint(tokens: list[int]) -> str:
    """Return a digest that tells texts of different Python versions apart."""
    return hashlib.sha256(np.array(tokens, "<i4").tobytes()).hexdigest()


def tell(step: str) -> None:
    """Say on stderr what is going on."""
    print(step, file=sys.stderr)


if __name__ == "__main__":
    main()
