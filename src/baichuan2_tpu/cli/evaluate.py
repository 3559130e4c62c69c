"""``baichuan2 evaluate``: perplexity of a text and tasks of lm-evaluation-harness, alone or compared.

Not here: scoring (``baichuan2_tpu.evaluate``), opening what is compared (``evaluate_models``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.terminal import byte_bar, notice, write_result

if TYPE_CHECKING:
    from baichuan2_tpu.cli.evaluate_models import Candidate
    from baichuan2_tpu.evaluate import Evaluation, Subject, TaskScore, TextPlan
    from baichuan2_tpu.evaluate.tasks import TaskSuite

__all__ = ["evaluate"]

_REFERENCE_TOKENS = 20_480
"""Tokens of the language reference, scored where no text or task is given: minutes on two cores."""


class _ReferenceEngine(str, Enum):
    """Engines of the model that is compared with."""

    AUTO = "auto"
    FLOAT = "float"
    CPU = "cpu"
    BMRT = "bmrt"
    SAIL = "sail"
    SIMULATOR = "simulator"


_Text = Annotated[
    Path | None,
    typer.Option(
        "--text",
        metavar="FILE",
        allow_dash=True,
        help="Text to score; - reads standard input.",
        show_default="without --task, 20480 tokens of the language reference inside Python",
    ),
]
_Tokens = Annotated[
    int | None,
    typer.Option(
        "--tokens", min=2, help="Score only this many tokens, from the start of the text.", show_default="all"
    ),
]
_Window = Annotated[
    int | None, typer.Option("--window", min=2, help="Tokens per window.", show_default="512")
]
_Stride = Annotated[
    int | None,
    typer.Option("--stride", min=1, help="Tokens from one window to the next.", show_default="the window"),
]
_Task = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Task of lm-evaluation-harness (ceval-valid, cmmlu, mmlu, …); may be repeated.",
    ),
]
_TaskFile = Annotated[
    list[Path] | None,
    typer.Option("--task-file", metavar="YAML", help="Your own task; may be repeated."),
]
_Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Questions per task.", show_default="all")]
_FewShot = Annotated[
    int | None,
    typer.Option("--few-shot", min=0, help="Solved examples before a question.", show_default="the task's"),
]
_Chat = Annotated[
    bool, typer.Option("--chat", help="Ask through the chat template, not as text to continue.")
]
_Against = Annotated[
    str | None,
    typer.Option(
        "--against", metavar="MODEL", help="Compare with this model; a float checkpoint is not quantised."
    ),
]
_AgainstEngine = Annotated[
    _ReferenceEngine,
    typer.Option("--against-engine", help="Engine for that model; float scores its unquantised weights."),
]


def evaluate(
    model: options.Model,
    *,
    text: _Text = None,
    tokens: _Tokens = None,
    window: _Window = None,
    stride: _Stride = None,
    task: _Task = None,
    task_file: _TaskFile = None,
    limit: _Limit = None,
    few_shot: _FewShot = None,
    chat: _Chat = False,
    against: _Against = None,
    against_engine: _AgainstEngine = _ReferenceEngine.AUTO,
    context: options.Context = None,
    threads: options.Threads = None,
    engine: options.Engine = options.EngineName.AUTO,
    device: options.Device = 0,
    exact: options.Exact = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure how good a model is, on a text and on tasks.

    The score of a text is its perplexity; tasks are those of lm-evaluation-harness, or your own files in its
    format. With --against two models get the same tokens and questions, and the difference has a confidence
    interval: a bootstrap over windows or questions. What was scored, and how, is printed with it.
    """
    from baichuan2_tpu.cli.evaluate_models import find_reference, find_subject
    from baichuan2_tpu.evaluate import Report
    from baichuan2_tpu.model import EngineSettings

    if against is None and against_engine is not _ReferenceEngine.AUTO:
        raise typer.BadParameter("--against-engine needs --against")
    asked_text = _AskedText(text, tokens, window, stride)
    work = _work(asked_text, _AskedTasks(task or [], task_file or [], limit, few_shot, chat))
    own = EngineSettings(engine.value, device, context, threads, exact)
    first, reference = find_subject(model, own, is_compared=against is not None), None
    if against is not None:
        reference = find_reference(against, replace(own, engine=against_engine.value))
        _check_comparable(first, reference, work)  # scoring the first may take hours
    with first.open() as subject:
        evaluation = _evaluate(subject, work)
    beside = None
    if reference is not None:
        with reference.open() as subject:
            beside = _evaluate(subject, work, evaluation)
    report = Report(evaluation, beside)
    shown = json.dumps(report.to_json(), ensure_ascii=False) if as_json else "\n".join(report.lines())
    write_result(shown + "\n")


@dataclass(frozen=True, slots=True)
class _AskedText:
    """The options of a text; None leaves one to the model."""

    file: Path | None
    tokens: int | None
    window: int | None
    stride: int | None

    def plan(self) -> TextPlan:
        """Read the text: the user's, or one that is always there."""
        from baichuan2_tpu.evaluate import TextPlan, language_reference
        from baichuan2_tpu.text.user_text import read_user_text, user_text_name

        if self.file is None:
            name, content = language_reference()
            return TextPlan(name, content, self.tokens or _REFERENCE_TOKENS, self.window, self.stride)
        content = read_user_text(self.file)
        return TextPlan(user_text_name(self.file), content, self.tokens, self.window, self.stride)

    @property
    def has_lengths(self) -> bool:
        """Whether the user gave a length."""
        return (self.tokens, self.window, self.stride) != (None, None, None)


@dataclass(frozen=True, slots=True)
class _AskedTasks:
    """The options of tasks; None leaves one to them."""

    names: list[str]
    files: list[Path]
    limit: int | None
    few_shot: int | None
    is_chat: bool

    def load(self) -> TaskSuite:
        """Load the tasks with their data."""
        from baichuan2_tpu.evaluate.tasks import TaskPlan, load_tasks

        plan = TaskPlan(
            names=tuple(self.names),
            files=tuple(self.files),
            limit=self.limit,
            few_shot=self.few_shot,
            is_chat=self.is_chat,
        )
        return load_tasks(plan, notice)

    @property
    def are_any(self) -> bool:
        """Whether there are tasks at all."""
        return bool(self.names or self.files)

    @property
    def has_settings(self) -> bool:
        """Whether the user gave a setting of tasks."""
        return (self.limit, self.few_shot) != (None, None) or self.is_chat


@dataclass(frozen=True, slots=True)
class _Work:
    """What is measured of every model."""

    text: TextPlan | None
    tasks: TaskSuite | None


def _work(text: _AskedText, tasks: _AskedTasks) -> _Work:
    """Read the text and load the tasks; without tasks there is always a text.

    Raises: typer.BadParameter for options of what is not asked for; RequestError.
    """
    if not tasks.are_any and tasks.has_settings:
        raise typer.BadParameter("--limit, --few-shot and --chat need --task or --task-file")
    if tasks.are_any and text.file is None:
        if text.has_lengths:
            raise typer.BadParameter("--tokens, --window and --stride need --text beside tasks")
        return _Work(None, tasks.load())
    return _Work(text.plan(), tasks.load() if tasks.are_any else None)


def _check_comparable(first: Candidate, reference: Candidate, work: _Work) -> None:
    """Check that the reference cuts the text alike, and can do the tasks.

    Raises: RequestError.
    """
    if work.text is not None:
        work.text.check_tokenizers(first.tokenizer, reference.tokenizer, reference.name)
    if work.text is not None or (work.tasks is not None and work.tasks.asks_for_scores):
        reference.check_head()
    if work.tasks is not None and reference.is_float:
        work.tasks.check_scored_alone(reference.name)


def _evaluate(subject: Subject, work: _Work, beside: Evaluation | None = None) -> Evaluation:
    """Score the text and run the tasks, with progress; windows are those of the model beside."""
    from baichuan2_tpu.evaluate import Evaluation, measure_perplexity

    text = perplexity = None
    if work.text is not None:
        plan = work.text.cut_like(beside.text) if beside and beside.text else work.text
        text = plan.tokenise(subject)
        with byte_bar(f"scoring {subject.name}") as progress:
            perplexity = measure_perplexity(subject, text, progress)
    scores: tuple[TaskScore, ...] = ()
    if work.tasks is not None:
        with byte_bar(f"asking {subject.name}") as progress:
            scores = work.tasks.run(subject, notice, progress)
    return Evaluation(
        model=subject.name,
        engine=subject.engine_name,
        weights=subject.weights,
        tokenizer=subject.tokenizer_name,
        text=text,
        perplexity=perplexity,
        tasks=scores,
    )
