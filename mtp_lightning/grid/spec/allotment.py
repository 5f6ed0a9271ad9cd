"""Which resources each cell gets, by the rules of its grid."""

from collections.abc import Mapping
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.expressions import Expression
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.resources import Resources
from mtp_lightning.grid.spec.values import SEED


class Allotment:
    """Later rules win, key by key. What is wrong is noted once in `problems`, for whichever cell it shows first."""

    def __init__(self, spec: GridSpec) -> None:
        self.spec = spec
        self.problems: dict[str, None] = {}
        self._common = {
            key: value for rule in spec.resources if rule.when is None for key, value in rule.values.items()
        }
        rules = [(rule.when, rule.values) for rule in spec.resources if rule.when is not None]
        self._rules = [(index, Expression(when, spec.keys), values) for index, (when, values) in enumerate(rules)]
        self._unused = dict.fromkeys(range(len(rules)))

    def __call__(self, values: Mapping[str, Any], seed: int, config: Mapping[str, Any]) -> Resources:
        """`config` answers for keys that `values` lack."""
        given = dict(self._common)
        for index, expression, more in list(self._rules):
            asked = {key: values[key] if key in values else look_up(config, key) for key in expression.keys - {SEED}}
            try:
                holds = expression.holds({**asked, SEED: seed})
            except InputError as error:
                self._note(error, "resources", "rules", index)
                self._rules = [rule for rule in self._rules if rule[0] != index]
                self._unused.pop(index, None)
                continue
            if holds:
                given |= more
                self._unused.pop(index, None)
        resources = Resources(**given)
        try:
            resources.check()
        except InputError as error:
            self._note(error, "resources")
        return resources

    def finish(self) -> None:
        """Every cell has its own: note the rules that none of them needed."""
        for index, expression, _ in self._rules:
            if index in self._unused:
                self._note(
                    f"'{expression.text}' holds for no cell; mend it, or leave it out", "resources", "rules", index
                )

    def _note(self, problem: object, *at: str | int) -> None:
        self.problems[f"{self.spec.where(*at)}: {problem}"] = None


def look_up(config: Mapping[str, Any], key: str) -> Any:
    """Raises InputError where there is no such key."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise InputError(f"no key '{key}' in the configuration")
        node = node[part]
    return node
