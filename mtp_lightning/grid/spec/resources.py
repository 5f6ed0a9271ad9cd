"""What each cell may use: the sections `resources`, `budget` and `retry` of a grid file, and the rules by which cells
get their resources."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.grid.spec.expressions import Expression
from mtp_lightning.grid.spec.grid_file import GridFile
from mtp_lightning.grid.spec.values import SEED, is_number, kind, look_up

BUDGET = ("gpu_hours", "hours", "tokens", "flops")


@dataclass(frozen=True)
class Resources:
    """Of one cell. None leaves the choice to the cluster.

    Where more than one process or node is asked for, the cell's configuration gets `trainer.devices` =
    `tasks_per_node` and `trainer.num_nodes` = `nodes` when it is launched. Both are hardware, and no part of its
    identity.
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
    gpu_memory_gb: float | None = None
    """Of each GPU. Slurm is not told: a cell that needs more is refused before it is submitted."""
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
        """
        Raises:
            InputError: values that are impossible together.
        """
        if self.gpus and self.tasks not in (None, self.gpus):
            raise InputError(
                f"{self.tasks} tasks on {self.gpus} GPUs are impossible: Lightning wants one process a GPU; leave "
                "tasks out"
            )


_DEFAULTS = {field.name: field.default for field in fields(Resources)}
_LEAST = {"gpus": 0, "nodes": 1, "tasks": 1, "cpus": 1, "minutes": 1}


@dataclass(frozen=True)
class ResourceRule:
    """Resources of the cells for which an expression over their values is true; later rules win, key by key."""

    when: str | None
    """None: every cell."""
    values: Mapping[str, Any]
    """Some of the fields of `Resources`."""


class ResourceRules:
    """Assigns resources to cells, by the rules of their grid.

    Args:
        keys: what the rules may name.
        where: the place of a part of the grid file, as `GridSpec.where` gives it.
        stages: earlier ones, whose axes are among the keys.
    """

    def __init__(
        self,
        rules: Sequence[ResourceRule],
        keys: Collection[str],
        where: Callable[..., str],
        stages: Sequence[str] = (),
    ) -> None:
        self.where = where
        self.problems: dict[str, None] = {}
        """Each problem once, from the first cell that shows it."""
        self._common = {key: value for rule in rules if rule.when is None for key, value in rule.values.items()}
        conditions = [(rule.when, rule.values) for rule in rules if rule.when is not None]
        self._rules = {
            index: (Expression(when, keys, stages), values) for index, (when, values) in enumerate(conditions)
        }
        self._unused = set(self._rules)

    def assign(self, values: Mapping[str, Any], seed: int, config: Mapping[str, Any]) -> Resources:
        """The resources of one cell; keys that `values` lack are looked up in `config`."""
        given = dict(self._common)
        for index, (expression, more) in list(self._rules.items()):
            known = {key: values[key] if key in values else look_up(config, key) for key in expression.keys - {SEED}}
            try:
                applies = expression.holds({**known, SEED: seed})
            except InputError as error:
                self._note(error, "resources", "rules", index)
                del self._rules[index]
                continue
            if applies:
                given |= more
                self._unused.discard(index)
        resources = Resources(**given)
        try:
            resources.check()
        except InputError as error:
            self._note(error, "resources")
        return resources

    def check_all_used(self) -> None:
        """After the last cell: note the rules that were true for none."""
        for index, (expression, _) in self._rules.items():
            if index in self._unused:
                message = f"'{expression.text}' is true for no cell; correct it, or leave it out"
                self._note(message, "resources", "rules", index)

    def _note(self, problem: object, *at: str | int) -> None:
        self.problems[f"{self.where(*at)}: {problem}"] = None


def read_resources(file: GridFile, usable: Callable[..., bool]) -> tuple[ResourceRule, ...]:
    """The section `resources`, in the order in which its rules apply.

    Args:
        usable: (expression, its place) -> whether it can be used; notes the reason where not.
    """
    section = dict(file.mapping("resources"))
    rules = section.pop("rules", [])
    found: list[ResourceRule] = []
    if values := _values(file, section, "resources"):
        found.append(ResourceRule(None, values))
    if not isinstance(rules, list):
        file.problem("resources", "rules", message=f"must be a list of rules, not {kind(rules)}")
        return tuple(found)
    kept: list[int] = []
    for index, rule in enumerate(rules):
        at = ("resources", "rules", index)
        if not isinstance(rule, dict) or not isinstance(rule.get("when"), str) or len(rule) < 2:
            file.problem(*at, message="must be a mapping such as {when: n_future >= 4, gpus: 2}")
            continue
        when = rule["when"]
        good = usable(when, *at)
        values = _values(file, {key: value for key, value in rule.items() if key != "when"}, *at)
        if good and values:
            found.append(ResourceRule(when, values))
            kept.append(index)
    file.keep("resources", "rules", indices=kept)
    return tuple(found)


def read_budget(file: GridFile) -> dict[str, float]:
    budget: dict[str, float] = {}
    for key, value in file.mapping("budget").items():
        if key not in BUDGET:
            hint = did_you_mean(str(key), BUDGET) or f"; there are {', '.join(BUDGET)}"
            file.problem("budget", str(key), message=f"unknown key{hint}")
        elif not positive(value):
            file.problem("budget", key, message=f"must be a positive number, not {value!r}")
        else:
            budget[key] = float(value)
    return budget


def read_retry(file: GridFile) -> int:
    retry = file.raw.get("retry", 0)
    if _whole(retry, 0):
        return int(retry)
    file.problem("retry", message=f"must be a whole number of attempts, 0 or more, not {retry!r}")
    return 0


def positive(value: object) -> bool:
    return is_number(value) and 0 < value <= sys.float_info.max


def _values(file: GridFile, section: Mapping[Any, Any], *at: str | int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in section.items():
        if key not in _DEFAULTS:
            hint = did_you_mean(str(key), _DEFAULTS) or f"; there are {', '.join(_DEFAULTS)}"
            file.problem(*at, str(key), message=f"unknown key{hint}")
        elif wanted := _wanted(key, value):
            file.problem(*at, key, message=f"must be {wanted}, not {value!r}")
        else:
            values[key] = value
    return values


def _wanted(key: str, value: object) -> str | None:
    """What a value should be that is not, or None for a good one."""
    if value is None and _DEFAULTS[key] is None:
        return None
    if key in _LEAST:
        return None if _whole(value, _LEAST[key]) else f"a whole number, {_LEAST[key]} or more"
    if key in ("memory_gb", "gpu_memory_gb"):
        return None if positive(value) else "a positive number"
    return None if isinstance(value, str) and value else "text"


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
