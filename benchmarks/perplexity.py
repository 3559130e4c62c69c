"""Compare the perplexity of the quantised demo weights with the float weights', on prose in every CPython.

The same windows go through every version; the interval is a bootstrap over windows of the log ratio. To
compare two models of your own, use ``baichuan2 evaluate MODEL --against OTHER``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.checkpoint.weights import Weights
from baichuan2_tpu.config import KvBits, QuantizationConfig
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.evaluate import EngineScorer, FloatScorer, Perplexity, ScoredText, language_reference
from baichuan2_tpu.markdown import markdown_table
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.reference.float_model import FloatModel
from baichuan2_tpu.resolve import ResolveSettings, find_source, resolve_model
from baichuan2_tpu.text.registry import open_tokenizer
from plain_rounding import RoundedWeights

FLOAT = "float32"

MODES: tuple[tuple[str, bool, KvBits], ...] = (("", False, 8), (", float activations", True, 16))

Versions = dict[str, tuple[Callable[[], Weights], bool, KvBits]]
"""By name: a function that opens the weights, whether they run in the engine's exact mode, and the bits of
keys and values."""


def main() -> None:
    """Score every version, print a table and, with --json, one JSON object as the last line."""
    given = parse_arguments()
    source = find_source(given.model, tell).path
    directories = {bits: quantized(given.model, bits) for bits in (4, 8)}
    text = read_text(directories[8], given)
    checkpoint = FloatCheckpoint.open(source)
    tell("scoring the float weights")
    scores = {FLOAT: Perplexity.of(FloatScorer(FloatModel(checkpoint)).score(text.passages()))}
    with tempfile.TemporaryDirectory() as folder:
        every = versions(directories, checkpoint) | other_methods(source, Path(folder), given.gptq)
        for name, (weights, is_exact, kv_bits) in every.items():
            tell(f"scoring {name}")
            scores[name] = score_weights(weights(), text, is_exact=is_exact, kv_bits=kv_bits)
    rows = {name: compare(score, scores[FLOAT]) for name, score in scores.items()}
    print(
        f"{source.name}: {scores[FLOAT].scored_tokens} tokens of {text.name}, window {text.window}, ", end=""
    )
    print(f"stride {text.stride}")
    print("\n".join(table(rows)))
    if given.json:
        settings = {"model": source.name, "window": text.window, "stride": text.stride}
        settings |= {"tokens": scores[FLOAT].scored_tokens, "text_sha256": text.sha256}
        print(json.dumps({**settings, "versions": rows}))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="demo", help="known name, .gguf file or checkpoint directory")
    parser.add_argument("--tokens", type=int, default=20_480, help="length of the text (20480)")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument(
        "--gptq",
        metavar="DIR",
        type=Path,
        help="take this checkpoint, made by quantize --method gptq, instead of making one",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    return parser.parse_args()


def quantized(model: str, bits: int) -> Path:
    """Return the package's own quantised checkpoint, from the cache or made now."""
    return resolve_model(model, ResolveSettings(bits=8 if bits == 8 else 4), notice=tell).path


def read_text(directory: Path, given: argparse.Namespace) -> ScoredText:
    """Tokenise the language reference that Python's ``help()`` shows."""
    name, prose = language_reference()
    tokenizer = open_tokenizer(directory)
    return ScoredText.of(name, prose, tokenizer, limit=given.tokens, window=given.window, stride=given.stride)


def versions(directories: dict[int, Path], checkpoint: FloatCheckpoint) -> Versions:
    """Return the versions to compare.

    The fast mode, which users get, rounds activations too; the exact one shows what the weights alone cost.
    """
    eight, four = (partial(QuantizedCheckpoint, directories[bits]) for bits in (8, 4))
    return {
        "8 bits": (eight, False, 8),
        "8 bits, float16 keys and values": (eight, False, 16),
        "8 bits, float activations": (eight, True, 16),
        "4 bits": (four, False, 8),
        "4 bits, float16 keys and values": (four, False, 16),
        "4 bits, float activations": (four, True, 16),
        "4 bits, plain rounding": (partial(RoundedWeights, checkpoint, QuantizationConfig(4)), False, 8),
    }


def other_methods(source: Path, folder: Path, gptq: Path | None) -> Versions:
    """Return 4 bits by the methods that are not the default; what is not given is made in ``folder``."""
    made = {"search": folder / "search", "gptq": gptq or folder / "gptq"}
    for method, directory in made.items():
        if not directory.exists():
            tell(f"quantising with --method {method}")
            quantize(source, directory, bits=4, method="gptq" if method == "gptq" else "search", notice=tell)
    return {
        f"4 bits, {method}{words}": (partial(QuantizedCheckpoint, directory), is_exact, kv_bits)
        for method, directory in made.items()
        for words, is_exact, kv_bits in MODES
    }


def score_weights(weights: Weights, text: ScoredText, *, is_exact: bool, kv_bits: KvBits) -> Perplexity:
    """Score quantised weights in the CPU engine."""
    with CpuEngine(weights, context=text.window, is_exact=is_exact, kv_bits=kv_bits) as engine:
        return Perplexity.of(EngineScorer(engine).score(text.passages()))


def compare(perplexity: Perplexity, reference: Perplexity) -> dict[str, float | None]:
    """Return the perplexity and its rise over the reference, with a 95 % interval, in per cent."""
    rise = perplexity.rise_over(reference)
    return {
        "perplexity": perplexity.value,
        "rise_percent": rise.percent,
        "rise_percent_low": rise.interval.low if rise.interval else None,
        "rise_percent_high": rise.interval.high if rise.interval else None,
        "same_first_choice": rise.same_choice,
    }


def table(rows: dict[str, dict[str, float | None]]) -> list[str]:
    """Return the lines of a Markdown table."""
    columns = ("weights", "perplexity", "rise over float", "95 % interval", "same first choice")
    return markdown_table(columns, [cells(name, row) for name, row in rows.items()])


def cells(name: str, row: dict[str, float | None]) -> tuple[str, ...]:
    """Return the cells of one version; a single window has no interval."""
    low, high = row["rise_percent_low"], row["rise_percent_high"]
    return (
        name,
        f"{row['perplexity']:.4f}",
        f"{row['rise_percent']:+.3f} %",
        "" if low is None else f"{low:+.3f} to {high:+.3f} %",
        f"{row['same_first_choice']:.2%}",
    )


def tell(step: str) -> None:
    """Print progress on stderr."""
    print(step, file=sys.stderr)


if __name__ == "__main__":
    main()
