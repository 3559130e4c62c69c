"""What an evaluation found, as lines for a reader and as one object for a program.

Not here: measuring it (``subject``, ``tasks``), printing it (``cli``).
"""

from __future__ import annotations

from dataclasses import dataclass

from baichuan2_tpu.evaluate.bootstrap import interval_json, interval_text
from baichuan2_tpu.evaluate.perplexity import Perplexity
from baichuan2_tpu.evaluate.scored_text import ScoredText, check_same_cut
from baichuan2_tpu.evaluate.task_scores import TaskScore
from baichuan2_tpu.markdown import markdown_table

__all__ = ["Evaluation", "Report", "perplexity_row"]

_PERPLEXITY_COLUMNS = ("model", "engine", "weights", "perplexity", "95 % interval")
_RISE_COLUMNS = ("rise", "95 % interval", "same first choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured of one model."""

    model: str
    engine: str
    weights: str
    tokenizer: str
    text: ScoredText | None = None
    perplexity: Perplexity | None = None
    tasks: tuple[TaskScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The evaluation of a model, alone or compared with another one.

    Raises: RequestError where both did not score the same tokens in the same windows.
    """

    own: Evaluation
    against: Evaluation | None = None

    def __post_init__(self) -> None:
        if self.against is not None and self.own.text is not None and self.against.text is not None:
            check_same_cut(self.own.text, self.against.text, self.against.model)

    def lines(self) -> list[str]:
        """Return what a reader wants to know, with Markdown tables."""
        lines: list[str] = []
        if self.own.text is not None and self.own.perplexity is not None:
            lines += [*_text_lines(self.own.text, self.own.perplexity, self.own.tokenizer), ""]
            lines += self._perplexity_table(self.own.perplexity)
        if self.own.tasks:
            lines += [""] if lines else []
            lines += self._task_table()
        return lines

    def to_json(self) -> dict[str, object]:
        """Return one object; an interval is a list of two numbers, or null."""
        facts = _facts(self.own)
        if self.against is None:
            return facts
        other = self.against
        comparison: dict[str, object] = {}
        if self.own.perplexity is not None and other.perplexity is not None:
            rise = self.own.perplexity.rise_over(other.perplexity)
            comparison |= {
                "rise_percent": rise.percent,
                "rise_percent_interval": interval_json(rise.interval),
                "same_first_choice": rise.same_choice,
            }
        if self.own.tasks:
            pairs = zip(self.own.tasks, other.tasks, strict=True)
            comparison["tasks"] = [score.comparison_json(reference) for score, reference in pairs]
        return {**facts, "against": _facts(other), "comparison": comparison}

    def _perplexity_table(self, perplexity: Perplexity) -> list[str]:
        other = self.against.perplexity if self.against else None
        if self.against is None or other is None:
            return markdown_table(_PERPLEXITY_COLUMNS, [perplexity_row(self.own, perplexity)])
        rows = [
            perplexity_row(self.own, perplexity, other),
            (*perplexity_row(self.against, other), "", "", ""),
        ]
        return markdown_table((*_PERPLEXITY_COLUMNS, *_RISE_COLUMNS), rows)

    def _task_table(self) -> list[str]:
        columns = ("task", "metric", "questions")
        if self.against is None:
            rows = [score.cells() for score in self.own.tasks]
            return markdown_table((*columns, self.own.model, "95 % interval"), rows)
        pairs = zip(self.own.tasks, self.against.tasks, strict=True)
        own, other = _distinct_names(self.own, self.against)
        return markdown_table(
            (*columns, own, "95 % interval", other, "difference", "95 % interval"),
            [(*score.cells(), *score.comparison_cells(reference)) for score, reference in pairs],
        )


def perplexity_row(
    evaluation: Evaluation, perplexity: Perplexity, reference: Perplexity | None = None
) -> tuple[str, ...]:
    """Return the cells of one model, with its rise over a reference where there is one."""
    cells = (
        evaluation.model,
        evaluation.engine,
        evaluation.weights,
        f"{perplexity.value:.4f}",
        interval_text(perplexity.interval, ".2f"),
    )
    if reference is None:
        return cells
    rise = perplexity.rise_over(reference)
    interval = interval_text(rise.interval, "+.3f", " %")
    return (*cells, f"{rise.percent:+.3f} %", interval, f"{rise.same_choice:.2%}")


def _distinct_names(own: Evaluation, other: Evaluation) -> tuple[str, str]:
    """Return two names for the head of a table; of one model twice, with what differs."""
    if own.model != other.model:
        return own.model, other.model
    return f"{own.model} ({own.weights}, {own.engine})", f"{other.model} ({other.weights}, {other.engine})"


def _text_lines(text: ScoredText, perplexity: Perplexity, tokenizer: str) -> list[str]:
    """Say what was scored, so that another can score the same."""
    return [
        f"text       {text.name}",
        f"tokens     {len(text.tokens)} by {tokenizer}, without a token in front; sha256 {text.sha256}",
        f"windows    {len(perplexity.counts)} of {text.window} tokens, stride {text.stride}; "
        f"{perplexity.scored_tokens} tokens are scored",
    ]


def _facts(evaluation: Evaluation) -> dict[str, object]:
    facts: dict[str, object] = {
        "model": evaluation.model,
        "engine": evaluation.engine,
        "weights": evaluation.weights,
    }
    if evaluation.text is not None and evaluation.perplexity is not None:
        facts["text"] = {
            "name": evaluation.text.name,
            "tokenizer": evaluation.tokenizer,
            "tokens": len(evaluation.text.tokens),
            "tokens_sha256": evaluation.text.sha256,
            "window": evaluation.text.window,
            "stride": evaluation.text.stride,
            "windows": len(evaluation.perplexity.counts),
            "scored_tokens": evaluation.perplexity.scored_tokens,
        }
        facts["perplexity"] = evaluation.perplexity.value
        facts["perplexity_interval"] = interval_json(evaluation.perplexity.interval)
    if evaluation.tasks:
        facts["tasks"] = [task.to_json() for task in evaluation.tasks]
    return facts
