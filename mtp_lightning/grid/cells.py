"""From a grid to its cells: the product of the axes, times the seeds, each with its full configuration."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.grid.resources import Resources
from mtp_lightning.grid.signature import SEED_KEY, canonical, signature
from mtp_lightning.grid.spec import GridSpec, is_file

Resolver = Callable[[Sequence[Path], Mapping[str, Any]], dict[str, Any]]
"""(configuration files, dotted overrides) -> the full configuration, defaults included, interpolation done, as plain
dicts, lists and scalars. Raises InputError for whatever `mtp fit` would refuse."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid. Equal signatures are one cell, in one grid and across grids."""

    grid: str
    values: Mapping[str, Any]
    """Axis key -> value, as written in the grid file."""
    seed: int
    config: Mapping[str, Any]
    signature: str
    group: str
    """The signature of the cell without its seed."""
    label: str
    """`n_future=4 seed=1`: what varies in the grid, by its shortest unambiguous name."""
    group_label: str
    baseline: bool
    directory: Path
    resources: Resources = field(default_factory=Resources)
    retry: int = 0
    aliases: tuple["Cell", ...] = ()
    """Other combinations of the grid that came to the same configuration."""

    def stands_for(self, values: Mapping[str, Any]) -> bool:
        return any(canonical(cell.values) == canonical(values) for cell in (self, *self.aliases))


def expand(spec: GridSpec, resolve: Resolver, runs: Path) -> list[Cell]:
    """All cells, settings in the order of the file with seeds innermost. Every cell is resolved before any is
    returned; all errors are reported together."""
    cells: dict[str, Cell] = {}
    errors: dict[str, None] = {}
    names = axis_names(spec)
    resolve = _remembering(resolve)
    for values in _settings(spec):
        try:
            group = _group(spec, resolve, values)
            for seed in spec.seeds:
                cell = _cell(spec, resolve, names, values, seed, group, runs)
                cells[cell.signature] = _merge(cells.get(cell.signature), cell)
        except InputError as error:
            errors[_blame(spec, resolve, values, error)] = None
    if errors:
        raise InputError("\n".join(errors))
    return list(cells.values())


def axis_names(spec: GridSpec) -> dict[str, str]:
    """Axis key -> its shortest dotted ending that no other axis shares: `model.heads.n_future` -> `n_future`."""
    taken = [key.split(".") for key in spec.axes] + [["seed"]]

    def shortest(key: str) -> str:
        parts = key.split(".")
        for size in range(1, len(parts)):
            if sum(other[-size:] == parts[-size:] for other in taken) == 1:
                return ".".join(parts[-size:])
        return key

    return {key: shortest(key) for key in spec.axes}


def value_name(spec: GridSpec, key: str, value: object) -> str:
    """A configuration file goes by its stem where that is unambiguous, anything else by its text."""
    if is_file(value):
        stems = [Path(other).stem for other in spec.axes[key] if is_file(other)]
        stem = Path(str(value)).stem
        return stem if stems.count(stem) == 1 else str(value)
    return value if isinstance(value, str) else canonical(value)


def baseline_values(spec: GridSpec, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The setting that `values` is compared with: the baseline, and for axes it leaves open, the same value."""
    return {**values, **spec.baseline} if spec.baseline else None


def _settings(spec: GridSpec) -> Iterator[dict[str, Any]]:
    for combination in product(*spec.axes.values()):
        yield dict(zip(spec.axes, combination))


def _resolve(spec: GridSpec, resolve: Resolver, values: Mapping[str, Any], seed: int) -> dict[str, Any]:
    files = [spec.files[value] for value in values.values() if is_file(value)]
    plain = {key: value for key, value in values.items() if not is_file(value)}
    return resolve([*spec.configs, *files], {**spec.overrides, **plain, SEED_KEY: seed})


def _remembering(resolve: Resolver) -> Resolver:
    """Resolving is the slow part, and seed 0 of a setting is asked for twice."""
    known: dict[str, dict[str, Any]] = {}

    def remembered(configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
        key = canonical([[str(path) for path in configs], overrides])
        if key not in known:
            known[key] = resolve(configs, overrides)
        return known[key]

    return remembered


def _group(spec: GridSpec, resolve: Resolver, values: Mapping[str, Any]) -> str:
    # Always resolved with seed 0: other keys may interpolate the seed, and the group must not see them differ.
    return signature(_resolve(spec, resolve, values, 0), without_seed=True)


def _cell(
    spec: GridSpec,
    resolve: Resolver,
    names: Mapping[str, str],
    values: Mapping[str, Any],
    seed: int,
    group: str,
    runs: Path,
) -> Cell:
    config = _resolve(spec, resolve, values, seed)
    for key, value in values.items():
        if is_file(value) and not _has(config, key):
            raise InputError(f"no key '{key}' in the configuration")
    try:
        name = signature(config)
    except TypeError as error:
        raise InputError(f"cannot be written to YAML: {error}") from error
    varying = [f"{names[k]}={value_name(spec, k, v)}" for k, v in values.items() if len(spec.axes[k]) > 1]
    group_label = " ".join(varying) or spec.name
    if len(spec.seeds) > 1:
        varying.append(f"seed={seed}")
    base = baseline_values(spec, values)
    return Cell(
        grid=spec.name,
        values=values,
        seed=seed,
        config=config,
        signature=name,
        group=group,
        label=" ".join(varying) or spec.name,
        group_label=group_label,
        baseline=base is not None and canonical(values) == canonical(base),
        directory=runs / name,
    )


def _merge(first: Cell | None, cell: Cell) -> Cell:
    if first is None:
        return cell
    return replace(first, aliases=(*first.aliases, cell), baseline=first.baseline or cell.baseline)


def _has(config: Mapping[str, Any], key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _blame(spec: GridSpec, resolve: Resolver, values: Mapping[str, Any], error: InputError) -> str:
    """The error with the grid file and the culprit in front: the first part of the grid that alone, on top of
    `configs`, gives the same error; the whole combination where no single part does."""
    bare = replace(spec, overrides={})

    def fails_alike(with_overrides: GridSpec, part: Mapping[str, Any]) -> bool:
        try:
            _cell(with_overrides, resolve, axis_names(spec), part, spec.seeds[0], "", Path())
        except InputError as other:
            return str(other) == str(error)
        return False

    if fails_alike(bare, {}):
        return f"{spec.where('configs')}: {error}"
    for key, value in spec.overrides.items():
        if fails_alike(replace(spec, overrides={key: value}), {}):
            return f"{spec.where('overrides', key)} = {_shown(value)}: {error}"
    for key, value in values.items():
        if fails_alike(spec, {key: value}):
            return f"{spec.where('axes', key)} = {_shown(value)}: {error}"
    combination = ", ".join(f"{key} = {_shown(value)}" for key, value in values.items())
    return f"{spec.where('axes')}: {combination}: {error}"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else canonical(value)
