"""The grid file, read strictly: whatever it says that is not understood is an error with its file, line and key."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.grid.signature import SEED_KEY, canonical, non_semantic
from mtp_lightning.grid.yaml_lines import Lines, read_yaml

FindConfig = Callable[[str, Path], Path]
"""(name as written, folder of the grid file) -> the configuration file; raises InputError where there is none."""


@dataclass(frozen=True)
class At:
    """Where runs are compared: behind so much training, of every cell alike."""

    unit: str
    """`step`, `tokens` or `flops`."""
    amount: float


@dataclass(frozen=True)
class ResourceRule:
    """Resources of the cells for which an expression over their values holds; later rules win, key by key."""

    when: str | None
    """None: every cell."""
    values: Mapping[str, Any]
    """Some of the fields of `Resources`."""


KEYS = ("name", "configs", "overrides", "axes", "seeds", "baseline", "compare")
_REQUIRED = ("name", "configs", "axes")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_METRIC_NAME = re.compile(r"[\w\-. :/]+")  # what MLflow accepts
_DOTTED_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


@dataclass(frozen=True)
class GridSpec:
    """A grid file, checked. `axes` and `seeds` are in the file's order; `baseline` may fix some axes only."""

    path: Path
    name: str
    configs: tuple[Path, ...]
    axes: Mapping[str, tuple[Any, ...]]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    baseline: Mapping[str, Any] = field(default_factory=dict)
    compare: tuple[str, ...] = ("val/loss/head_1",)
    files: Mapping[str, Path] = field(default_factory=dict)
    """Axis values that are configuration files, as written -> found."""
    overridden: Mapping[str, Any] = field(default_factory=dict)
    """What of `overrides` came from the command line."""
    zip: tuple[tuple[str, ...], ...] = ()
    """Groups of axes that advance together."""
    include: tuple[Mapping[str, Any], ...] = ()
    """Extra settings: values of axes and of any other key."""
    exclude: tuple[str, ...] = ()
    """Expressions over axis values; a setting for which one holds is left out."""
    ablate: bool = False
    """One factor at a time from the baseline, instead of the product of the axes."""
    resources: tuple[ResourceRule, ...] = ()
    budget: Mapping[str, float] = field(default_factory=dict)
    """`gpu_hours`, `hours`, `tokens`, `flops`: `plan` refuses a grid that costs more."""
    retry: int = 0
    """Attempts after a failure that are made without being asked."""
    better: Mapping[str, str] = field(default_factory=dict)
    """Metric -> `lower` or `higher`, where the file says so."""
    at: Mapping[str, At] = field(default_factory=dict)
    """Metric -> where it is compared, where that is not the end."""
    lines: Lines = field(default_factory=dict, repr=False, compare=False)

    def where(self, *key: str) -> str:
        """`grid.yaml:7: axes.model.heads.n_future`, for the front of an error message."""
        line = self.lines.get(key)
        return f"{self.path}{f':{line}' if line else ''}: {'.'.join(key)}"


def load_grid(path: Path, find_config: FindConfig, overrides: Mapping[str, Any] | None = None) -> GridSpec:
    """Read and check a grid file. Whether its keys exist in the configuration is found out by `cells.expand`.

    Args:
        overrides: on top of the file's.
    """
    raw, lines = read_yaml(path)
    if overrides and isinstance(raw, dict) and isinstance(raw.get("overrides", {}), dict):
        raw = raw | {"overrides": raw.get("overrides", {}) | dict(overrides)}
    return replace(_Reader(path, raw, lines, find_config).read(), overridden=dict(overrides or {}))


class _Reader:
    """The checks of one file; every failure goes through `fail`, which knows the line."""

    def __init__(self, path: Path, raw: object, lines: Lines, find_config: FindConfig) -> None:
        self.path, self.lines, self.find_config = path, lines, find_config
        if not isinstance(raw, dict):
            raise InputError(f"{path}: a grid file is a mapping with the keys {', '.join(KEYS)}")
        self.raw: dict[str, Any] = raw
        self.files: dict[str, Path] = {}

    def fail(self, *key: str, message: str) -> NoReturn:
        line = self.lines.get(key)
        raise InputError(f"{self.path}{f':{line}' if line else ''}: {'.'.join(key)}: {message}")

    def read(self) -> GridSpec:
        for key in self.raw:
            if key not in KEYS:
                self.fail(
                    str(key),
                    message=f"unknown key{did_you_mean(str(key), KEYS) or '; known: ' + ', '.join(KEYS)}",
                )
        for key in _REQUIRED:
            if key not in self.raw:
                raise InputError(f"{self.path}: {key}: missing; a grid needs {', '.join(_REQUIRED)}")
        axes = self.axes()
        optional: dict[str, Any] = {}
        if "seeds" in self.raw:
            optional["seeds"] = self.seeds()
        if "compare" in self.raw:
            optional["compare"] = self.compare()
        return GridSpec(
            path=self.path,
            name=self.name(),
            configs=self.configs(),
            axes=axes,
            overrides=self.overrides(axes),
            baseline=self.baseline(axes),
            files=self.files,
            lines=self.lines,
            **optional,
        )

    def name(self) -> str:
        name = self.raw["name"]
        if not isinstance(name, str) or not _FOLDER_NAME.fullmatch(name):
            self.fail("name", message=f"{name!r} cannot name a folder: letters, digits and . _ - only, 100 at most")
        return name

    def configs(self) -> tuple[Path, ...]:
        configs = self.list_of(str, "configs", "paths of YAML files")
        return tuple(self.find(name, "configs") for name in configs)

    def find(self, name: str, *key: str) -> Path:
        try:
            return self.find_config(name, self.path.parent)
        except InputError as error:
            self.fail(*key, message=str(error))

    def axes(self) -> dict[str, tuple[Any, ...]]:
        axes: dict[str, tuple[Any, ...]] = {}
        for key, values in self.mapping("axes").items():
            self.settable("axes", key)
            if not isinstance(values, list):
                self.fail("axes", key, message=f"must be a list of values, not {_kind(values)}")
            if not values:
                self.fail("axes", key, message="has no values")
            for value in values:
                self.plain(value, "axes", key)
                if is_file(value):
                    self.files[value] = self.find(value, "axes", key)
            self.no_duplicates(values, "axes", key)
            axes[key] = tuple(values)
        if not axes:
            self.fail("axes", message="is empty; give at least one key with a list of values")
        return axes

    def overrides(self, axes: Mapping[str, Any]) -> dict[str, Any]:
        overrides = self.mapping("overrides")
        for key, value in overrides.items():
            self.settable("overrides", key, identity=False)
            if key in axes:
                self.fail("overrides", key, message="is an axis too; keep one of them")
            self.plain(value, "overrides", key)
        return overrides

    def settable(self, section: str, key: object, identity: bool = True) -> None:
        if not isinstance(key, str) or not _DOTTED_KEY.fullmatch(key):
            self.fail(section, str(key), message="is not a dotted configuration key such as model.heads.n_future")
        if key == SEED_KEY:
            self.fail(section, key, message="seeds are set by the key `seeds`")
        if identity and (reason := non_semantic(key)):
            self.fail(section, key, message=f"cannot be an axis: it is no part of a cell's identity ({reason})")

    def seeds(self) -> tuple[int, ...]:
        seeds = self.list_of(int, "seeds", "whole numbers")
        for seed in seeds:
            if not 0 <= seed < 2**32:
                self.fail("seeds", message=f"{seed} is outside 0 .. 4294967295")
        self.no_duplicates(seeds, "seeds")
        return tuple(seeds)

    def compare(self) -> tuple[str, ...]:
        names = self.list_of(str, "compare", "metric names")
        for name in names:
            if not _METRIC_NAME.fullmatch(name):
                self.fail("compare", message=f"{name!r} is no metric name: letters, digits and _ - . : / only")
        self.no_duplicates(names, "compare")
        return tuple(names)

    def baseline(self, axes: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        baseline = self.mapping("baseline")
        for key, value in baseline.items():
            if key not in axes:
                hint = did_you_mean(str(key), axes) or f"; the axes are {', '.join(axes)}"
                self.fail("baseline", str(key), message=f"is not an axis{hint}")
            if canonical(value) not in [canonical(other) for other in axes[key]]:
                on = ", ".join(map(str, axes[key]))
                self.fail("baseline", key, message=f"{value!r} is not on the axis, which has {on}")
        return baseline

    def mapping(self, section: str) -> dict[Any, Any]:
        value = self.raw.get(section, {})
        if not isinstance(value, dict):
            self.fail(section, message=f"must be a mapping, not {_kind(value)}")
        return value

    def list_of(self, kind: type, section: str, what: str) -> list[Any]:
        values = self.raw[section]
        if not isinstance(values, list) or not values:
            self.fail(section, message=f"must be a list of {what}, and not empty")
        for value in values:
            if not isinstance(value, kind) or isinstance(value, bool):
                self.fail(section, message=f"must be a list of {what}; {value!r} is {_kind(value)}")
        return values

    def plain(self, value: object, *key: str) -> None:
        try:
            canonical(value)
        except TypeError as error:
            self.fail(*key, message=f"{error}; quote it if it is meant as text")

    def no_duplicates(self, values: Sequence[Any], *key: str) -> None:
        seen: set[str] = set()
        for value in values:
            text = canonical(value)
            if text in seen:
                self.fail(*key, message=f"{value!r} is given twice")
            seen.add(text)


def is_file(value: object) -> bool:
    """An axis value ending in .yaml is a configuration file, merged after `configs` as one more `-c` would be."""
    return isinstance(value, str) and value.endswith(".yaml")


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return "empty" if value is None else names.get(type(value), type(value).__name__)
