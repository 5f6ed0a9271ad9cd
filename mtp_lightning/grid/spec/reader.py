"""The checks of a grid file, section by section: a problem names its file, line and key. Whether its keys exist in the
configuration is found out later, by `cells.expand`."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mtp_lightning.config.config_files import find_config
from mtp_lightning.errors import did_you_mean
from mtp_lightning.grid.spec.expressions import Expression
from mtp_lightning.grid.spec.grid_file import GridFile
from mtp_lightning.grid.spec.ladder_tune_gate import read_gate, read_ladder, read_tune
from mtp_lightning.grid.spec.resources import positive, read_budget, read_resources, read_retry
from mtp_lightning.grid.spec.signature import as_meant, canonical
from mtp_lightning.grid.spec.stages import Stage
from mtp_lightning.grid.spec.values import SEED, is_file, kind, nearest_key, shown
from mtp_lightning.yaml_lines import Lines

KEYS = (
    *("name", "configs", "overrides", "axes", "zip", "include", "exclude", "ablate", "seeds", "baseline"),
    *("compare", "ladder", "tune", "gate", "resources", "budget", "retry", "stages"),
)
REQUIRED = ("name", "configs", "axes")
UNITS = ("step", "tokens", "bytes", "flops", "seconds")
DIRECTIONS = ("lower", "higher")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_METRIC_NAME = re.compile(r"[\w\-. :/]+")  # what MLflow accepts

Axes = Mapping[str, tuple[Any, ...]]


class Reader(GridFile):
    """`fields` holds the good part of a file as arguments of `GridSpec`. What refers to a broken axis is left out, and
    not reported: the axis is."""

    def __init__(self, path: Path, raw: Mapping[Any, Any], lines: Lines, stage: Stage | None = None) -> None:
        super().__init__(path, raw, lines)
        self.is_stage, self.ancestors = stage is not None, stage.ancestors if stage is not None else ()
        self.files: dict[str, Path] = {}
        self.keys: list[str] = []
        """The axes as written, broken ones too."""
        self.keys_are_known = True
        """False: a key itself is broken, so that it is not known which axis was meant."""
        self.fields = self.read()

    def read(self) -> dict[str, Any]:
        for key in self.raw:
            if key not in KEYS:
                hint = did_you_mean(str(key), KEYS) or "; known: " + ", ".join(KEYS)
                self.problem(str(key), message=f"unknown key{hint}")
        for key in REQUIRED:
            if key not in self.raw:
                self.problem(key, message=f"missing; a grid needs {', '.join(REQUIRED)}")
        axes = self.axes()
        groups = self.groups(axes)
        include = self.include()
        baseline = self.baseline(axes, groups)
        extra = {key for values in include for key in values}
        seeds, compare = self.seeds(), self.compare()
        fixed = [key for key in axes if key in baseline]
        first = next(iter(compare["compare"]), None)
        fields: dict[str, Any] = {
            "name": self.name(),
            "configs": self.configs(),
            "axes": axes,
            "overrides": self.overrides(),
            "seeds": seeds,
            "baseline": baseline,
            "zip": groups,
            "include": include,
            "exclude": self.exclude(axes),
            "ablate": self.ablate(axes, baseline),
            "resources": read_resources(self, lambda text, *at: self.usable(text, {*axes, *extra}, *at)),
            "budget": read_budget(self),
            "retry": read_retry(self),
            "files": self.files,
            "ladder": read_ladder(self, axes, fixed, groups),
            "tune": read_tune(self, axes, fixed, groups, seeds, [*compare["at"]], first, include),
            "gate": read_gate(self),
            **compare,
        }
        return {key: value for key, value in fields.items() if key in self.raw or key not in KEYS}

    def name(self) -> str:
        name = self.raw.get("name")
        if "name" in self.raw and (not isinstance(name, str) or not _FOLDER_NAME.fullmatch(name)):
            self.problem("name", message=f"{name!r} cannot name a folder: letters, digits and . _ - only, 100 at most")
        return str(name)

    def configs(self) -> tuple[Path, ...]:
        """All of them or none: without one of them the others mean something else."""
        names = self.items("configs", str, "paths of YAML files")
        found = [self.attempt(partial(find_config, name, self.path.parent), "configs", i) for i, name in names]
        return tuple(path for path in found if path) if all(found) else ()

    def axes(self) -> dict[str, tuple[Any, ...]]:
        section = self.mapping("axes")
        axes: dict[str, tuple[Any, ...]] = {}
        for key, values in section.items():
            if not self.settable("axes", key=key, identity="an axis") or not self.is_free(key, "axes"):
                self.keys_are_known = False
                continue
            self.keys.append(key)
            if not isinstance(values, list):
                self.problem("axes", key, message=f"must be a list of values, not {kind(values)}")
            elif not values:
                self.problem("axes", key, message="has no values")
            else:
                values = [as_meant(key, value) for value in values]
                good = [self.value(value, "axes", key, index) for index, value in enumerate(values)]
                if all(good) and (self.in_a_group(key) or self.no_duplicates(values, "axes", key)):
                    axes[key] = tuple(values)
        if self.raw.get("axes") == {} and not self.is_stage:
            self.problem("axes", message="is empty; give at least one key with a list of values")
        self.keys_are_known = self.keys_are_known and (bool(section) or self.is_stage)
        return axes

    def is_free(self, key: str, *at: str | int) -> bool:
        """Where a stage begins with the weights of an earlier one, `from` says which they are."""
        if key == "model.init.path" and self.ancestors:
            return self.problem(*at, key, message="follows from the stage's `from`: leave one of them out")
        return True

    def in_a_group(self, key: str) -> bool:
        """An axis that advances together with another may have a value twice."""
        groups = self.raw.get("zip")
        return isinstance(groups, list) and any(isinstance(group, list) and key in group for group in groups)

    def value(self, value: object, *at: str | int) -> bool:
        if not self.plain(value, *at):
            return False
        if is_file(value):
            path = self.attempt(partial(find_config, value, self.path.parent), *at)
            if path is None:
                return False
            self.files[value] = path
        return True

    def groups(self, axes: Axes) -> tuple[tuple[str, ...], ...]:
        groups: list[tuple[str, ...]] = []
        taken: set[str] = set()
        for index, group in self.items("zip", list, "groups, each a list of axes"):
            if len(group) < 2 or not all(isinstance(key, str) for key in group):
                self.problem("zip", index, message=f"a group is a list of two axes or more, not {group!r}")
                continue
            named = [self.is_axis(key, "zip", index) for key in group]
            if repeated := next((key for i, key in enumerate(group) if key in {*taken, *group[:i]}), None):
                self.problem("zip", index, message=f"'{repeated}' is given twice")
            elif all(named) and all(key in axes for key in group) and self.advance_together(group, axes, index):
                groups.append(tuple(group))
            taken |= set(group)
        return tuple(groups)

    def is_axis(self, key: object, *at: str | int) -> bool:
        if key in self.keys:
            return True
        if self.keys_are_known:
            name = "" if at[-1] == key else f"'{key}' "
            self.problem(*at, message=f"{name}is not an axis{nearest_key(str(key), self.keys, self.ancestors)}")
        return False

    def advance_together(self, group: Sequence[str], axes: Axes, index: int) -> bool:
        lengths = {key: len(axes[key]) for key in group}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            return self.problem("zip", index, message=f"axes that advance together have equally many values; {counts}")
        return self.no_duplicates(_rows(group, axes), "zip", index)

    def baseline(self, axes: Axes, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        baseline: dict[str, Any] = {}
        for key, value in self.mapping("baseline").items():
            value = as_meant(str(key), value)
            if not self.is_axis(key, "baseline", str(key)) or key not in axes or not self.plain(value, "baseline", key):
                continue
            if canonical(value) in map(canonical, axes[key]):
                baseline[key] = value
            else:
                on = ", ".join(map(str, axes[key]))
                self.problem("baseline", key, message=f"{value!r} is not on the axis, which has {on}")
        for group in groups:
            baseline |= self.rest_of_group(group, axes, {key: baseline[key] for key in group if key in baseline})
        return baseline

    def rest_of_group(self, group: Sequence[str], axes: Axes, given: Mapping[str, Any]) -> dict[str, Any]:
        """The baseline's values on the other axes of a group of which it fixes some."""
        rows = [dict(zip(group, row)) for row in _rows(group, axes)]
        fitting = [row for row in rows if all(canonical(row[key]) == canonical(given[key]) for key in given)]
        if not given or len(fitting) == 1:
            return {key: value for key, value in fitting[0].items() if given and key not in given}
        if fitting:
            missing = ", ".join(key for key in group if key not in given)
            self.problem("baseline", message=f"{', '.join(given)} fits several values; give {missing} too")
        else:
            pairs = ", ".join(f"{key} {shown(value)}" for key, value in given.items())
            self.problem("baseline", message=f"is not in the grid: {pairs} never come together (see `zip`)")
        return {}

    def include(self) -> tuple[Mapping[str, Any], ...]:
        found: dict[int, Mapping[str, Any]] = {}
        for index, values in self.items("include", dict, "settings such as {model.heads.n_future: 8}"):
            if not values:
                self.problem("include", index, message="is empty; give at least one key and its value")
            good = [
                self.settable("include", index, key=key, identity="included")
                and self.value(value, "include", index, key)
                for key, value in values.items()
            ]
            if good and all(good):
                found[index] = {key: as_meant(key, value) for key, value in values.items()}
        self.keep("include", indices=[*found])
        return tuple(found.values())

    def exclude(self, axes: Axes) -> tuple[str, ...]:
        texts = self.items("exclude", str, "expressions such as n_future > 4")
        found = {index: text for index, text in texts if self.usable(text, axes, "exclude", index)}
        self.keep("exclude", indices=[*found])
        return tuple(found.values())

    def usable(self, text: str, keys: Collection[str], *at: str | int) -> bool:
        """Whether an expression is correct, and names only `keys`, from which broken axes may be missing."""
        if not self.keys_are_known:
            return False
        known = dict.fromkeys([*self.keys, *keys])
        expression = self.attempt(partial(Expression, text, known, self.ancestors), *at)
        return expression is not None and expression.keys <= {*keys, SEED}

    def ablate(self, axes: Axes, baseline: Mapping[str, Any]) -> bool:
        ablate = self.raw.get("ablate", False)
        if not isinstance(ablate, bool):
            return self.problem("ablate", message=f"must be true or false, not {ablate!r}")
        given = self.raw.get("baseline", {})
        open_ = [key for key in axes if key not in baseline and isinstance(given, dict) and key not in given]
        if ablate and (other := [key for key in ("ladder", "tune") if key in self.raw]):
            message = (
                f"does not go with {' and '.join(other)}, whose axis the baseline leaves open: take one of them out"
            )
            return self.problem("ablate", message=message)
        if ablate and open_:
            message = f"one factor at a time needs a full baseline, and it does not fix {', '.join(open_)}"
            return self.problem("ablate", message=message)
        return ablate and baseline.keys() == axes.keys()

    def overrides(self) -> Mapping[str, Any]:
        overrides = self.mapping("overrides")
        for key, value in overrides.items():
            if not self.settable("overrides", key=key, identity=None) or not self.is_free(key, "overrides"):
                continue
            if key in self.keys:
                self.problem("overrides", key, message="is an axis too; keep one of them")
            self.plain(value, "overrides", key)
        return overrides

    def seeds(self) -> tuple[int, ...]:
        seeds = [seed for _, seed in self.items("seeds", int, "whole numbers")]
        for index, seed in enumerate(seeds):
            if not 0 <= seed < 2**32:
                self.problem("seeds", index, message=f"{seed} is outside 0 .. 4294967295")
        self.no_duplicates(seeds, "seeds")
        return tuple(seeds) or (0,)  # to go on looking for problems

    def compare(self) -> dict[str, Any]:
        """`compare`, `better` and `at` (metric -> unit and amount)."""
        names: list[str] = []
        better: dict[str, str] = {}
        at: dict[str, tuple[str, float]] = {}
        for index, entry in self.items("compare", (str, dict), "metric names, or mappings with `metric`"):
            options = entry if isinstance(entry, dict) else {"metric": entry}
            name = options.get("metric")
            if not isinstance(name, str) or not _METRIC_NAME.fullmatch(name):
                message = f"{name!r} is no metric name: letters, digits and _ - . : / only"
                self.problem("compare", index, message=message)
                continue
            names.append(name)
            for key, value in options.items():
                if key == "better" and value in DIRECTIONS:
                    better[name] = value
                elif key == "at" and _is_at(value):
                    ((unit, amount),) = value.items()
                    at[name] = (unit, float(amount))
                elif key != "metric":
                    self.problem("compare", index, str(key), message=_NOT_COMPARE.get(key, _UNKNOWN_COMPARE))
        self.no_duplicates(names, "compare")
        return {"compare": tuple(names), "better": better, "at": at}


_NOT_COMPARE = {
    "better": f"must be {' or '.join(DIRECTIONS)}",
    "at": f"must be one of {', '.join(UNITS)} with a positive number, such as {{step: 1000}}",
}
_UNKNOWN_COMPARE = "unknown key; there are metric, better, at"


def _is_at(value: object) -> bool:
    return isinstance(value, dict) and len(value) == 1 and all(k in UNITS and positive(v) for k, v in value.items())


def _rows(group: Sequence[str], axes: Axes) -> list[tuple[Any, ...]]:
    return list(zip(*(axes[key] for key in group)))
