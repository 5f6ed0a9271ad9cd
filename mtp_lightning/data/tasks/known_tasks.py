"""The synthetic tasks there are, and how one comes back out of a checkpoint."""

from collections.abc import Mapping
from typing import Any

from mtp_lightning.data.tasks.execution import Execution
from mtp_lightning.data.tasks.polynomial import Polynomial
from mtp_lightning.data.tasks.star_graph import StarGraph
from mtp_lightning.data.tasks.task import Task

TASKS: dict[str, type[Task]] = {"execution": Execution, "polynomial": Polynomial, "star_graph": StarGraph}


def task_from_state(state: Mapping[str, Any]) -> Task:
    """The task whose `state()` this is."""
    settings = {key: value for key, value in state.items() if key != "name"}
    return TASKS[state["name"]](**settings)
