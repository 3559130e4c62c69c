from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

class TaskConfig:
    metric_list: list[dict[str, Any]] | None
    process_results: object | None

class Task:
    OUTPUT_TYPE: str | None
    @property
    def config(self) -> TaskConfig: ...

class Group: ...

class TaskDict(TypedDict):
    tasks: dict[str, Task]
    groups: dict[str, Group]
    group_map: dict[str, list[str]]

class TaskManager:
    def __init__(self, *, include_defaults: bool = True) -> None: ...
    @property
    def task_index(self) -> Mapping[str, object]: ...
    def load(self, task_list: Sequence[str | Task | Group]) -> TaskDict: ...
