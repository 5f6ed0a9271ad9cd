"""A grid file, read and checked: `GridSpec`, which everything else works with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtp_lightning.config.config_files import in_checkout
from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.ladder_tune_gate import Gate, Ladder, Tune
from mtp_lightning.grid.spec.reader import KEYS, REQUIRED, Reader
from mtp_lightning.grid.spec.resources import ResourceRule
from mtp_lightning.grid.spec.stages import Stage, split_stages
from mtp_lightning.yaml_lines import Lines, place, read_yaml


@dataclass(frozen=True)
class At:
    """Where runs are compared: after this much training of every cell."""

    unit: str
    """`step`, `tokens`, `bytes`, `flops` or `seconds`."""
    amount: float


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
    """The part of `overrides` that came from the command line."""
    zip: tuple[tuple[str, ...], ...] = ()
    """Groups of axes that advance together."""
    include: tuple[Mapping[str, Any], ...] = ()
    """Extra settings: values of axes and of any other key."""
    exclude: tuple[str, ...] = ()
    """Expressions over axis values; a setting for which one is true is left out."""
    ablate: bool = False
    """One factor at a time from the baseline, instead of the product of the axes."""
    resources: tuple[ResourceRule, ...] = ()
    budget: Mapping[str, float] = field(default_factory=dict)
    """`gpu_hours`, `hours`, `tokens`, `flops`: `plan` refuses a grid that costs more."""
    retry: int = 0
    """How many times a cell that failed is tried again."""
    better: Mapping[str, str] = field(default_factory=dict)
    """Metric -> `lower` or `higher`, where the file says so."""
    at: Mapping[str, At] = field(default_factory=dict)
    """Metric -> where it is compared, if not at the end."""
    ladder: Ladder | None = None
    tune: Tune | None = None
    gate: Gate | None = None
    is_stage: bool = False
    ancestors: tuple[str, ...] = ()
    """Of a stage: the stages that it comes from, the nearest first."""
    stages: tuple["GridSpec", ...] = ()
    """Of a chain, which has no cells but theirs."""
    lines: Lines = field(default_factory=dict, repr=False, compare=False)

    @property
    def stage(self) -> str:
        """Its name in its chain; empty for a grid that is none."""
        return self.name.rpartition(".")[2] if self.is_stage else ""

    @property
    def parts(self) -> tuple["GridSpec", ...]:
        """What is compared and recorded on its own: the stages of a chain, or the grid."""
        return self.stages or (self,)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Those that only serve to tune come first."""
        return (*(self.tune.seeds if self.tune else ()), *self.seeds)

    @property
    def tuned_keys(self) -> tuple[str, ...]:
        """The axis that is tuned, and what advances together with it."""
        return self.together(self.tune.axis) if self.tune else ()

    def together(self, axis: str) -> tuple[str, ...]:
        """The group of axes that it advances together with; itself alone."""
        return next((group for group in self.zip if axis in group), (axis,))

    @property
    def keys(self) -> tuple[str, ...]:
        """The axes, then what only an `include` sets."""
        return tuple(dict.fromkeys([*self.axes, *(key for given in self.include for key in given)]))

    def where(self, *key: str | int) -> str:
        """`grid.yaml:7: axes.model.heads.n_future`, the beginning of an error message; an int is the index of an
        item."""
        return place(self.path, self.lines, *key)


def experiment_name(grid: str) -> str:
    """Its MLflow experiment."""
    return f"mtp/{grid}"


def read_grid(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[GridSpec | None, list[str]]:
    """The good part of a grid file, and everything that is wrong with the rest. None: too little of it is good.

    Whether its keys exist in the configuration is found out later, by resolving its cells.

    Args:
        overrides: on top of the file's.
    """
    path = in_checkout(path)
    raw, lines = read_yaml(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a grid file is a mapping with the keys {', '.join(KEYS)}")
    if overrides and isinstance(raw.get("overrides", {}), dict):
        raw = raw | {"overrides": raw.get("overrides", {}) | dict(overrides)}
    if "stages" in raw:
        return _read_chain(path, raw, lines, overrides)
    return _read(path, raw, lines, overrides)


def _read(
    path: Path, raw: Mapping[Any, Any], lines: Lines, overrides: Mapping[str, Any] | None, stage: Stage | None = None
) -> tuple[GridSpec | None, list[str]]:
    reader = Reader(path, raw, lines, stage)
    fields = reader.fields
    if not all(fields.get(key) for key in REQUIRED if key != "axes" or stage is None):
        return None, reader.problems
    at = {metric: At(*where) for metric, where in fields.pop("at").items()}
    spec = GridSpec(
        path=path,
        lines=reader.lines,
        overridden=dict(overrides or {}),
        at=at,
        is_stage=stage is not None,
        ancestors=reader.ancestors,
        **fields,
    )
    return spec, reader.problems


def _read_chain(
    path: Path, raw: Mapping[Any, Any], lines: Lines, overrides: Mapping[str, Any] | None
) -> tuple[GridSpec | None, list[str]]:
    stages, problems = split_stages(path, raw, lines)
    specs = []
    for stage in stages:
        spec, more = _read(path, stage.raw, stage.lines, overrides, stage)
        specs += [spec] if spec is not None else []
        problems += more
    problems = list(dict.fromkeys(problems))  # what stands beside `stages` is wrong for each of them
    if not stages or len(specs) < len(stages):
        return None, problems
    rest = {key: value for key, value in raw.items() if key in ("name", "budget")}
    common = Reader(path, {"configs": ["conf/base.yaml"], "axes": {"a": [0]}} | rest, lines)
    problems += [text for text in common.problems if text not in problems]
    chain = GridSpec(
        path=path,
        name=str(common.fields.get("name")),
        configs=specs[0].configs,
        axes={},
        seeds=specs[0].seeds,
        budget=common.fields.get("budget", {}),
        overridden=dict(overrides or {}),
        stages=tuple(specs),
        lines=lines,
    )
    return chain, problems
