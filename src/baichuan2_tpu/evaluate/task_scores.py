"""The score of a task of lm-evaluation-harness, with the interval that follows from its questions.

Not here: running tasks (``tasks``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.evaluate.bootstrap import Interval, interval_json, interval_text, ratio_interval

__all__ = ["TaskScore"]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task, or of a group of tasks.

    ``values`` are those of every question, in order, where the metric is their mean; None where it is not,
    which leaves no interval.
    """

    task: str
    metric: str
    value: float
    questions: int
    values: NDArray[np.float64] | None

    @property
    def interval(self) -> Interval | None:
        """How far the choice of questions may carry the value."""
        return None if self.values is None else _mean_interval(self.values)

    def difference_interval(self, reference: TaskScore) -> Interval | None:
        """Return the interval of the difference, question by question."""
        if self.values is None or reference.values is None or len(self.values) != len(reference.values):
            return None
        return _mean_interval(self.values - reference.values)

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table: task, metric, questions, value, interval."""
        return (
            self.task,
            self.metric,
            str(self.questions),
            f"{self.value:.4f}",
            interval_text(self.interval, ".4f"),
        )

    def comparison_cells(self, reference: TaskScore) -> tuple[str, ...]:
        """Return the cells beside: the reference's value, the difference, its interval."""
        difference = self.value - reference.value
        interval = interval_text(self.difference_interval(reference), "+.4f")
        return f"{reference.value:.4f}", f"{difference:+.4f}", interval

    def to_json(self) -> dict[str, object]:
        """Return the facts of the table as one object."""
        return {
            "task": self.task,
            "metric": self.metric,
            "questions": self.questions,
            "value": self.value,
            "interval": interval_json(self.interval),
        }

    def comparison_json(self, reference: TaskScore) -> dict[str, object]:
        """Return the difference to a reference as one object."""
        return {
            "task": self.task,
            "metric": self.metric,
            "difference": self.value - reference.value,
            "difference_interval": interval_json(self.difference_interval(reference)),
        }


def _mean_interval(values: NDArray[np.float64]) -> Interval | None:
    return ratio_interval(values, np.ones(len(values), np.int64))
