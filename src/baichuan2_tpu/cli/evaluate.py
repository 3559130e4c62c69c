"""``baichuan2 evaluate``: perplexity of a text and tasks of lm-evaluation-harness, beside another model's.

Not here: scoring (``baichuan2_tpu.evaluate``), opening what is compared (``evaluating``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.inputs import read_text
from baichuan2_tpu.cli.models import EngineSettings, resolve
from baichuan2_tpu.cli.terminal import byte_bar, notice, write_result

if TYPE_CHECKING:
    from baichuan2_tpu.evaluate import Evaluation, Subject, TaskScore, TextPlan
    from baichuan2_tpu.evaluate.tasks import TaskSuite

__all__ = ["evaluate"]

_REFERENCE_TOKENS = 20_480
"""Of the language reference that is scored where nothing else is asked for: minutes on two cores."""


class _ReferenceEngine(str, Enum):
    """Engines of the model that is compared with."""

    AUTO = "auto"
    FLOAT = "float"
    CPU = "cpu"
    BMRT = "bmrt"
    SAIL = "sail"
    SIMULATOR = "simulator"


def evaluate(
    model: options.Model,
    *,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            allow_dash=True,
            help="Text to score; - reads standard input.",
            show_default="without --task, 20480 tokens of the language reference inside Python",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=2, help="Score the first tokens alone.", show_default="all"),
    ] = None,
    window: Annotated[
        int | None, typer.Option("--window", min=2, help="Tokens of a window.", show_default="512")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, help="Tokens from window to window.", show_default="the window"),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="Task of lm-evaluation-harness (ceval-valid, cmmlu, mmlu, …); may be repeated.",
        ),
    ] = None,
    task_file: Annotated[
        list[Path] | None,
        typer.Option("--task-file", metavar="YAML", help="Task of your own; may be repeated."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions a task.", show_default="all")
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(
            "--few-shot", min=0, help="Solved examples before a question.", show_default="the task's"
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask as a user of a chat does, not as text to be continued.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="MODEL", help="Compare with this; a float checkpoint is not quantised."
        ),
    ] = None,
    against_engine: Annotated[
        _ReferenceEngine,
        typer.Option("--against-engine", help="Where to run that; float scores the weights of its source."),
    ] = _ReferenceEngine.AUTO,
    context: options.Context = None,
    threads: options.Threads = None,
    engine: options.Engine = options.EngineName.AUTO,
    device: options.Device = 0,
    exact: options.Exact = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure how good a model is, on a text and on tasks.

    A text has a perplexity; tasks are those of lm-evaluation-harness, or files of your own in its form. With
    --against two models get the same tokens and questions, and the difference has an interval: a bootstrap
    over windows or questions. What was scored, and how, is printed with it.
    """
    from baichuan2_tpu.cli.evaluating import open_reference, open_subject
    from baichuan2_tpu.evaluate import Report

    if against is None and against_engine is not _ReferenceEngine.AUTO:
        raise typer.BadParameter("--against-engine needs --against")
    work = _work(text, (tokens, window, stride), task, task_file, (limit, few_shot, chat))
    own = EngineSettings(engine.value, device, context, threads, exact)
    reference = EngineSettings(against_engine.value, device, context, threads, exact)
    directory = resolve(model)
    with open_subject(model, directory, own, is_compared=against is not None) as subject:
        found = _evaluate(subject, work)
    beside = None
    if against is not None:
        with open_reference(against, reference) as subject:
            beside = _evaluate(subject, work, found)
    report = Report(found, beside)
    shown = json.dumps(report.to_json(), ensure_ascii=False) if as_json else "\n".join(report.lines())
    write_result(shown + "\n")


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be found of every model."""

    text: TextPlan | None
    tasks: TaskSuite | None


def _work(
    text: Path | None,
    lengths: tuple[int | None, int | None, int | None],
    tasks: list[str] | None,
    task_files: list[Path] | None,
    asking: tuple[int | None, int | None, bool],
) -> _Work:
    """Read what the user said of the text and the tasks; without tasks there is always a text.

    Raises: typer.BadParameter for options of what is not asked for; RequestError.
    """
    from baichuan2_tpu.evaluate import TextPlan, language_reference

    is_asking = bool(tasks or task_files)
    if text is None and is_asking:
        if any(length is not None for length in lengths):
            raise typer.BadParameter("--tokens, --window and --stride need --text beside tasks")
        return _Work(None, _task_suite(tasks or [], task_files or [], asking))
    tokens, window, stride = lengths
    if text is not None:
        name = "standard input" if str(text) == "-" else str(text)
        plan = TextPlan(name, read_text(text), tokens, window, stride)
        return _Work(plan, _task_suite(tasks or [], task_files or [], asking))
    name, content = language_reference()
    plan = TextPlan(name, content, tokens or _REFERENCE_TOKENS, window, stride)
    return _Work(plan, _task_suite([], [], asking))


def _task_suite(
    tasks: list[str], files: list[Path], asking: tuple[int | None, int | None, bool]
) -> TaskSuite | None:
    """Return the tasks that are asked for, loaded with their data.

    Raises: typer.BadParameter for options that only tasks have; RequestError for a task that cannot be run.
    """
    limit, few_shot, is_chat = asking
    if not tasks and not files:
        if limit is not None or few_shot is not None or is_chat:
            raise typer.BadParameter("--limit, --few-shot and --chat need --task or --task-file")
        return None
    from baichuan2_tpu.evaluate.tasks import TaskPlan, load_tasks

    plan = TaskPlan(names=tuple(tasks), files=tuple(files), limit=limit, few_shot=few_shot, is_chat=is_chat)
    return load_tasks(plan, notice)


def _evaluate(subject: Subject, work: _Work, beside: Evaluation | None = None) -> Evaluation:
    """Score the text and run the tasks, with progress; the tokens must be those of the model beside."""
    from baichuan2_tpu.evaluate import Evaluation, check_same_tokens, measure_perplexity

    text = perplexity = None
    if work.text is not None:
        text = work.text.tokenised(subject)
        if beside is not None and beside.text is not None:
            check_same_tokens(beside.text, text, subject.name)
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
