"""What cells may use: of a machine, of a budget, of attempts; and the sections of the grid file that say so."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.grid.spec.problems import Content
from mtp_lightning.grid.spec.values import is_number, kind

BUDGET = ("gpu_hours", "hours", "tokens", "flops")


@dataclass(frozen=True)
class Resources:
    """Of one cell. None leaves a thing to the cluster's default.

    A cell's configuration follows: where more than one process or node is asked for, `trainer.devices` becomes
    `tasks_per_node` and `trainer.num_nodes` becomes `nodes` when the cell is launched. Both are hardware, and no part
    of its identity.
    """

    gpus: int = 0
    """On each node; 0: the cell trains on processors."""
    nodes: int = 1
    tasks: int | None = None
    """Processes on each node. None: one a GPU, or one."""
    cpus: int | None = None
    """Cores of each process."""
    memory_gb: float | None = None
    """Of each node."""
    minutes: int | None = None
    """Wall-clock limit of one attempt; a cell that runs into it is saved and queued again."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None

    @property
    def tasks_per_node(self) -> int:
        return self.tasks if self.tasks is not None else max(1, self.gpus)

    def check(self) -> None:
        """Raises InputError for what is impossible together."""
        if self.gpus and self.tasks not in (None, self.gpus):
            raise InputError(
                f"{self.tasks} tasks on {self.gpus} GPUs are impossible: Lightning wants one process a GPU; leave "
                "tasks out"
            )


_DEFAULTS = {field.name: field.default for field in fields(Resources)}
_LEAST = {"gpus": 0, "nodes": 1, "tasks": 1, "cpus": 1, "minutes": 1}


def read_resources(content: Content, usable: Callable[..., bool]) -> list[tuple[str | None, dict[str, Any]]]:
    """(expression, or None for every cell; resources) in the order in which they apply.

    Args:
        usable: (expression, its place) -> whether it can be used; notes why not.
    """
    section = dict(content.mapping("resources"))
    rules = section.pop("rules", [])
    found: list[tuple[str | None, dict[str, Any]]] = []
    if values := _values(content, section, "resources"):
        found.append((None, values))
    if not isinstance(rules, list):
        content.problem("resources", "rules", message=f"must be a list of rules, not {kind(rules)}")
        return found
    kept: list[int] = []
    for index, rule in enumerate(rules):
        at = ("resources", "rules", index)
        if not isinstance(rule, dict) or not isinstance(rule.get("when"), str) or len(rule) < 2:
            content.problem(*at, message="must be a mapping such as {when: n_future >= 4, gpus: 2}")
            continue
        when = rule["when"]
        good = usable(when, *at)
        values = _values(content, {key: value for key, value in rule.items() if key != "when"}, *at)
        if good and values:
            found.append((when, values))
            kept.append(index)
    content.keep("resources", "rules", indices=kept)
    return found


def read_budget(content: Content) -> dict[str, float]:
    budget: dict[str, float] = {}
    for key, value in content.mapping("budget").items():
        if key not in BUDGET:
            hint = did_you_mean(str(key), BUDGET) or f"; there are {', '.join(BUDGET)}"
            content.problem("budget", str(key), message=f"unknown key{hint}")
        elif not positive(value):
            content.problem("budget", key, message=f"must be a positive number, not {value!r}")
        else:
            budget[key] = float(value)
    return budget


def read_retry(content: Content) -> int:
    retry = content.raw.get("retry", 0)
    if _whole(retry, 0):
        return int(retry)
    content.problem("retry", message=f"must be a whole number of attempts, 0 or more, not {retry!r}")
    return 0


def positive(value: object) -> bool:
    return is_number(value) and 0 < value <= sys.float_info.max


def _values(content: Content, section: Mapping[Any, Any], *at: str | int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in section.items():
        if key not in _DEFAULTS:
            hint = did_you_mean(str(key), _DEFAULTS) or f"; there are {', '.join(_DEFAULTS)}"
            content.problem(*at, str(key), message=f"unknown key{hint}")
        elif wanted := _wanted(key, value):
            content.problem(*at, key, message=f"must be {wanted}, not {value!r}")
        else:
            values[key] = value
    return values


def _wanted(key: str, value: object) -> str | None:
    """What a value should be that is not, or None for a good one."""
    if value is None and _DEFAULTS[key] is None:
        return None
    if key in _LEAST:
        return None if _whole(value, _LEAST[key]) else f"a whole number, {_LEAST[key]} or more"
    if key == "memory_gb":
        return None if positive(value) else "a positive number"
    return None if isinstance(value, str) and value else "text"


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
