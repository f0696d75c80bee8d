"""What is asked of a model: indirect objects and greater-than, with prompts, answers and metrics.

Names load on first use, so that `import case_studies.tasks` is free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from case_studies.tasks.behaviour import Behaviour, measure_behaviour
    from case_studies.tasks.greater_than import GreaterThanTask
    from case_studies.tasks.ioi import IoiTask
    from case_studies.tasks.task import Split, Task, TaskPrompt

__all__ = [
    "Behaviour",
    "GreaterThanTask",
    "IoiTask",
    "Split",
    "Task",
    "TaskPrompt",
    "measure_behaviour",
]

_HOME = {
    "Behaviour": "behaviour",
    "GreaterThanTask": "greater_than",
    "IoiTask": "ioi",
    "Split": "task",
    "Task": "task",
    "TaskPrompt": "task",
    "measure_behaviour": "behaviour",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'case_studies.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"case_studies.tasks.{_HOME[name]}"), name)
