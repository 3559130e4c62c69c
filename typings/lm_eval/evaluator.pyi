from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.tasks import Group, Task, TaskManager

def simple_evaluate(
    model: LM,
    *,
    tasks: Sequence[Task | Group],
    num_fewshot: int | None = None,
    limit: int | None = None,
    bootstrap_iters: int = 100000,
    apply_chat_template: bool = False,
    task_manager: TaskManager | None = None,
) -> dict[str, Any] | None: ...
