"""``baichuan2 estimate``: what a token of a compiled bundle will take on the device.

Not here: adding up (``baichuan2_tpu.estimate``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.terminal import notice, write_result

if TYPE_CHECKING:
    from rich.table import Table

    from baichuan2_tpu.estimate import Estimate
    from baichuan2_tpu.manifest import Manifest

__all__ = ["estimate"]

_TABLE_WIDTH = 110


def estimate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by baichuan2 compile.")],
    *,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Also draw the times, as SVG.")
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Estimate the time per token of a compiled bundle on the device, for one user and for many.

    The figures are those of the compiler's cycle model, never a measurement; what it leaves out is listed
    below them. Neither a device nor the compiler is needed.
    """
    from baichuan2_tpu.estimate import draw, to_json
    from baichuan2_tpu.estimate import estimate as add_up
    from baichuan2_tpu.files import write_whole
    from baichuan2_tpu.manifest import Manifest

    figures = add_up(Manifest.read(bundle))
    if as_json:
        write_result(json.dumps(to_json(figures), ensure_ascii=False) + "\n")
    else:
        _show(figures)
    if picture is not None:
        write_whole(picture, draw(figures, title=_title(figures.manifest)))
        notice(f"[picture: {picture}]")


def _title(manifest: Manifest) -> str:
    """Name what was compiled, in words that are no file's."""
    layers = f"{manifest.model.layers} layers of {manifest.bits} bits"
    lengths = f"context {manifest.context}, {manifest.rows} rows"
    return f"{manifest.chip}: {layers}, {manifest.head} head, {lengths}"


def _show(figures: Estimate) -> None:
    """Print the tables and what the model leaves out."""
    from rich.console import Console

    from baichuan2_tpu.estimate import CEILINGS, HELD_AGAINST, LEFT_OUT, method

    console = Console(file=sys.stdout, width=_TABLE_WIDTH, highlight=False, markup=False)
    write_result(f"{_title(figures.manifest)}\nestimated, not measured, by the {method(figures.manifest)}\n")
    tables = (_token_table, _answers_table, _loaded_table, _stage_table, _prompt_table)
    for make_table in tables:
        write_result("\n")
        console.print(make_table(figures))
    write_result("\nrows in use: at most so many, of all sequences together and with what the step writes\n")
    write_result(f"roofline: {'; '.join(CEILINGS)}\n")
    write_result("left out:\n" + "".join(f"- {line}\n" for line in LEFT_OUT))
    write_result("held against:\n" + "".join(f"- {line}\n" for line in HELD_AGAINST))


def _token_table(figures: Estimate) -> Table:
    """Show one token of a single conversation by part, and the whole."""
    total = figures.decode.total
    rows = [
        (name, cost, f"{cost.time_ms / total.time_ms:.1%}") for name, cost in figures.decode.parts().items()
    ]
    rows.append(("a token", total, f"{figures.decode_tok_per_s:.2f} tok/s"))
    return _table(
        (f"one user, {figures.histories[0]} rows", "launches", "ms", "share", "MB read", "roofline ms"),
        (
            (
                name,
                f"{cost.launches}",
                f"{cost.time_ms:.2f}",
                share,
                _megabytes(cost.read_bytes),
                f"{cost.roofline_ms:.2f}",
            )
            for name, cost, share in rows
        ),
    )


def _answers_table(figures: Estimate) -> Table:
    """Show a step of all answers, which is a token for each user: its time, and tokens per second."""
    from baichuan2_tpu.estimate import USERS

    def cell(users: int, rows: int) -> str:
        if (step := figures.answers.get((users, rows))) is None:
            return "-"
        return f"{step.total.time_ms:.1f} ({1000 * users / step.total.time_ms:.0f})"

    return _table(
        ("ms per step (tok/s), rows in use", *(f"{users} user{'s' if users > 1 else ''}" for users in USERS)),
        ((f"{rows}", *(cell(users, rows) for users in USERS)) for rows in figures.histories),
    )


def _loaded_table(figures: Estimate) -> Table:
    """Show the first token of a prompt that rides along with answers, and what it costs them."""
    from baichuan2_tpu.estimate import PROMPT_BESIDE_ANSWERS, USERS

    def cell(users: int, rows: int) -> str:
        if (step := figures.loaded.get((users, rows))) is None:
            return "-"
        alone_ms = figures.answers[users, rows].total.time_ms
        return f"{step.total.time_ms:.1f} ({step.total.time_ms / alone_ms:.2f}x)"

    heading = f"with a prompt of {PROMPT_BESIDE_ANSWERS}, rows in use"
    return _table(
        (heading, *(f"{users} answer{'s' if users > 1 else ''}" for users in USERS)),
        ((f"{rows}", *(cell(users, rows) for users in USERS)) for rows in figures.histories),
    )


def _stage_table(figures: Estimate) -> Table:
    """Show one layer, as the mean of all, by new tokens and rows of the history."""
    layers = figures.manifest.model.layers
    tokens = sorted({stage.tokens for stage in figures.stages})
    times = {tuple(stage): f"{cost.time_ms / layers:.3f}" for stage, cost in figures.stages.items()}
    return _table(
        ("ms per layer, rows read", *(f"{count} new" for count in tokens)),
        ((f"{rows}", *(times.get((count, rows), "-") for count in tokens)) for rows in figures.histories),
    )


def _prompt_table(figures: Estimate) -> Table:
    """Show the first token by the length of the prompt."""
    from baichuan2_tpu.estimate import kv_bytes_per_token

    kv_bytes = kv_bytes_per_token(figures.manifest)
    return _table(
        ("prompt tokens", "in launches of", "first token ms", "roofline ms", "KV cache MB"),
        (
            (
                f"{length}",
                _pieces([stage.tokens for stage in step.stages]),
                f"{step.total.time_ms:.1f}",
                f"{step.total.roofline_ms:.1f}",
                _megabytes(length * kv_bytes),
            )
            for length, step in figures.first_tokens.items()
        ),
    )


def _pieces(pieces: list[int]) -> str:
    """Write pieces as sums of products: "256 x3 + 64"."""
    counts = {tokens: pieces.count(tokens) for tokens in pieces}
    return " + ".join(f"{tokens} x{count}" if count > 1 else f"{tokens}" for tokens, count in counts.items())


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    first, *others = columns
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"
