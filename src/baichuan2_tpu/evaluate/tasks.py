"""Tasks of lm-evaluation-harness: find them, load their data, run them, and take out the results.

Needs the extra ``eval``. The harness is kept quiet, and from running code that a download brought: data sets
are never scripts here, and metrics are the harness's own. Not here: what a task asks a model
(``harness_model``).
Source: ``simple_evaluate`` and ``TaskManager`` of lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from baichuan2_tpu.errors import Baichuan2Error, RequestError
from baichuan2_tpu.evaluate.passages import Progress
from baichuan2_tpu.evaluate.subject import Subject, no_answers
from baichuan2_tpu.evaluate.task_scores import TaskScore

if TYPE_CHECKING:
    from lm_eval.tasks import Group, Task, TaskManager

__all__ = ["TaskPlan", "TaskSuite", "load_tasks"]

_WRITTEN = "generate_until"
"""The harness's name for what a task asks that wants answers in words."""
_SAFE_DATASETS = 4
"""From this major version on, ``datasets`` runs no scripts that come with data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """Which tasks to run, and how; None leaves it to the task."""

    names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    limit: int | None = None
    """Questions per task; None is all."""
    few_shot: int | None = None
    """Solved examples before each question; a task that is meant to have none keeps none."""
    is_chat: bool = False


class TaskSuite:
    """Loaded tasks, which any number of models can be asked."""

    def __init__(self, plan: TaskPlan, manager: TaskManager, loaded: Sequence[Task | Group]) -> None:
        self._plan = plan
        self._manager = manager
        self._loaded = loaded

    @property
    def asks_for_scores(self) -> bool:
        """Whether any task has something scored: choices or documents."""
        return bool(self._output_types() - {_WRITTEN})

    def check_scored_alone(self, model: str) -> None:
        """Check that float weights, which write no text, can do all tasks.

        Raises: RequestError.
        """
        if _WRITTEN in self._output_types():
            raise no_answers(model)

    def _output_types(self) -> set[str | None]:
        return {task.OUTPUT_TYPE for task in self._manager.load(list(self._loaded))["tasks"].values()}

    def run(
        self, subject: Subject, on_step: Callable[[str], None], on_progress: Progress | None = None
    ) -> tuple[TaskScore, ...]:
        """Ask a model and return the scores, groups before their tasks.

        Side effect: the harness seeds Python's and numpy's global generators.
        Raises: RequestError for what the model cannot do or the harness cannot run; what engines raise.
        """
        from lm_eval import evaluator  # noqa: PLC0415

        from baichuan2_tpu.evaluate.harness_model import SubjectLM  # noqa: PLC0415

        model = SubjectLM(subject, on_progress)
        on_step(f"asking {subject.name}")
        with _quiet(), _without_git(evaluator), _harness_errors("the tasks cannot be run"):
            results = evaluator.simple_evaluate(
                model,
                tasks=self._loaded,
                num_fewshot=self._plan.few_shot,
                limit=self._plan.limit,
                bootstrap_iters=0,  # intervals are made of the questions' own values
                apply_chat_template=self._plan.is_chat,
                task_manager=self._manager,
            )
        assert results is not None, "there is one process, and it has the results"  # noqa: S101
        if model.cut_requests:
            on_step(f"{model.cut_requests} contexts were cut at their beginning to fit {subject.name}")
        return task_scores(results)


def load_tasks(plan: TaskPlan, on_step: Callable[[str], None]) -> TaskSuite:
    """Find tasks and load their data, which may be downloaded.

    Relative names of data in a task file are from its own folder.
    Side effect: what the Hugging Face libraries keep in their caches.
    Raises: RequestError for the missing extra, an unknown task, a wrong file, or data out of reach.
    """
    _check_installed()
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    if plan.names:
        on_step("reading the list of tasks")
    with _quiet(), _harness_errors("the list of tasks cannot be read"):
        manager = TaskManager(include_defaults=bool(plan.names))
    loaded: list[Task | Group] = []
    for name in plan.names:
        if name not in manager.task_index:
            version = importlib.metadata.version("lm-eval")
            raise RequestError(
                f"lm-evaluation-harness {version} has no task {name!r}; 'lm-eval ls tasks' lists them, and "
                "--task-file takes one of your own"
            )
        on_step(f"loading {name}")
        loaded += _load(manager, name, f"task {name}")
    for file in plan.files:
        if not file.is_file():
            raise RequestError(f"there is no task file {file}; name a YAML file")
        with _working_folder(file.resolve().parent):
            loaded += _load(manager, str(file.resolve()), f"task file {file}")
    return TaskSuite(plan, manager, loaded)


def task_scores(harness_results: Mapping[str, Any]) -> tuple[TaskScore, ...]:
    """Take the scores out of the harness's results."""
    children: Mapping[str, Sequence[str]] = harness_results.get("group_subtasks", {})
    counts: Mapping[str, Mapping[str, int]] = harness_results["n-samples"]
    results: dict[str, Mapping[str, Any]] = {
        **harness_results.get("groups", {}),
        **harness_results["results"],
    }
    scores: list[TaskScore] = []
    for task, metrics in results.items():
        leaves = _leaves(task, children)
        questions = sum(counts[leaf]["effective"] for leaf in leaves)
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            values = _question_values(harness_results["samples"], leaves, metric, chosen)
            # Only a mean over questions can be drawn anew.
            is_mean = values is not None and math.isclose(float(values.mean()), value, abs_tol=1e-9)
            name = metric if chosen == "none" else f"{metric} ({chosen})"
            scores.append(TaskScore(task, name, float(value), questions, values if is_mean else None))
    return tuple(scores)


def _leaves(task: str, children: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the tasks of a group, however deep; a task is its own."""
    if not children.get(task):
        return [task]
    return [leaf for child in children[task] for leaf in _leaves(child, children)]


def _question_values(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], leaves: Sequence[str], metric: str, chosen: str
) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """Return a metric's value of every question, in order; None where questions have no number each."""
    values = [
        sample.get(metric)
        for leaf in leaves
        for sample in sorted(samples[leaf], key=lambda sample: sample["doc_id"])
        if sample["filter"] == chosen
    ]
    if not values or not all(isinstance(value, int | float | np.number) for value in values):
        return None
    return np.array(values, np.float64)


def _load(manager: TaskManager, spec: str, what: str) -> list[Task | Group]:
    """Load one task or group and check that it runs no code out of a download."""
    with _quiet(), _no_downloaded_metrics(), _harness_errors(f"{what} cannot be loaded"):
        loaded = manager.load([spec])
    for task in loaded["tasks"].values():
        _check_metrics(what, task)
    inside = {child for children in loaded["group_map"].values() for child in children}
    both = {**loaded["groups"], **loaded["tasks"]}
    return [item for name, item in both.items() if name not in inside]


def _check_metrics(what: str, task: Task) -> None:
    """Check that the metrics are the harness's own: others are code that would be downloaded."""
    from lm_eval.api.registry import metric_registry  # noqa: PLC0415

    if task.config.process_results is not None:
        return
    for entry in task.config.metric_list or ():
        metric = entry["metric"]
        if isinstance(metric, str) and (metric not in metric_registry or entry.get("hf_evaluate") is True):
            raise RequestError(
                f"{what} asks for the metric {metric!r}, which would be downloaded as code; "
                "only lm-evaluation-harness's own metrics are run"
            )


def _check_installed() -> None:
    """Check that the harness is there, with a version of datasets that runs no scripts.

    Raises: RequestError with the step that installs it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RequestError(
            "tasks need lm-evaluation-harness, which is not installed; "
            "run in the clone: pip install '.[eval]'"
        )
    version = importlib.metadata.version("datasets")
    if int(version.partition(".")[0]) < _SAFE_DATASETS:
        raise RequestError(
            f"datasets {version} can run code that comes with data, {_SAFE_DATASETS}.0 or newer is allowed; "
            f"run: pip install 'datasets>={_SAFE_DATASETS}'"
        )


@contextlib.contextmanager
def _harness_errors(failed: str) -> Generator[None, None, None]:
    """Turn what the harness and the libraries below it raise into one line with the next step.

    Their exceptions have no common base: whatever a task file, a download or a task's own code raises comes
    through here, and so do our own, which pass.
    """
    try:
        yield
    except Baichuan2Error:
        raise
    except Exception as error:  # without a common base; see above
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(f"{failed}: {type(error).__name__}: {reason}; {_next_step(error)}") from error


def _next_step(error: Exception) -> str:
    """Tell data out of reach from everything else."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {
        "ConnectionError",
        "ConnectError",
        "HTTPError",
        "OfflineModeIsEnabled",
        "DatasetNotFoundError",
    }:
        return (
            "reach huggingface.co or a mirror (HF_ENDPOINT), or copy the data set into the cache (HF_HOME), "
            "or give a file of your own with --task-file"
        )
    if "scripts are no longer supported" in str(error):
        return "its data comes as a script, which is not run; give a file of your own with --task-file"
    return "check the task with lm-evaluation-harness's documentation; --debug shows where it failed"


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep what the harness prints and logs away from the result; errors are raised, not logged."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _without_git(evaluator: ModuleType) -> Generator[None, None, None]:
    """Keep the harness from running git in the user's folder, for a record that is not used here.

    What git says of a folder without a repository goes past ``_quiet``, straight to the terminal.
    """
    name = "get_git_commit_hash"
    before = getattr(evaluator, name)
    setattr(evaluator, name, lambda: None)
    try:
        yield
    finally:
        setattr(evaluator, name, before)


@contextlib.contextmanager
def _no_downloaded_metrics() -> Generator[None, None, None]:
    """Make ``import evaluate`` fail, whose metrics are code from a download."""
    missing = object()
    before: Any = sys.modules.get("evaluate", missing)
    sys.modules["evaluate"] = None  # pyright: ignore[reportArgumentType] - how an import is blocked
    try:
        yield
    finally:
        if before is missing:
            del sys.modules["evaluate"]
        else:
            sys.modules["evaluate"] = before


@contextlib.contextmanager
def _working_folder(folder: Path) -> Generator[None, None, None]:
    """Work in a folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
