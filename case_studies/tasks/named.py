"""Tasks by the names that commands know them by."""

from typing import Literal

from case_studies.tasks.greater_than import GreaterThanTask
from case_studies.tasks.ioi import IoiTask
from case_studies.tasks.task import Task

__all__ = ["named_task"]


def named_task(
    name: Literal["greater-than", "ioi"], *, frames: Literal["plain", "story"] = "plain"
) -> Task:
    """The task called `name`; `frames` are the sentences of `ioi`."""
    return GreaterThanTask() if name == "greater-than" else IoiTask(frames=frames)
