"""From a grid to its cells: its settings, times the seeds, each with its full configuration."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtp_lightning.config.keys.linked_keys import SEED_KEY
from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.grid.spec.grid_spec import GridSpec, read_grid
from mtp_lightning.grid.spec.resources import ResourceRules, Resources
from mtp_lightning.grid.spec.settings import Setting, find_settings, is_baseline
from mtp_lightning.grid.spec.signature import canonical, signature
from mtp_lightning.grid.spec.values import is_file, look_up, short_names, shown, value_names


@dataclass(frozen=True)
class Cell:
    """One run of a grid. Equal signatures are one cell, in one grid and across grids."""

    grid: str
    values: Mapping[str, Any]
    """Axis key -> value, as written in the grid file; and what else an `include` sets. An axis that neither the
    `include` nor the baseline names is missing: its value is the configuration's."""
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
    """Other combinations of the grid with the same configuration."""


def load_cells(
    path: Path, resolver: Resolver, runs: Path, overrides: Mapping[str, Any] | None = None
) -> tuple[GridSpec, list[Cell]]:
    """A grid file and its cells.

    Args:
        overrides: on top of the file's.

    Raises:
        InputError: everything that is wrong, together. What can be found without loading Lightning (in the file, and
            keys that no configuration has) is reported at once; only where that finds nothing are cells resolved.
    """
    spec, problems = read_grid(path, overrides)
    if spec is not None:
        settings, more = find_settings(spec)
        maker = _CellMaker(spec, resolver, runs)
        unknown = maker.unknown_keys(settings)
        if not problems and not unknown:
            return spec, expand(spec, resolver, runs)
        maker.try_rules(settings)
        problems = [*problems, *more, *unknown, *maker.rules.problems]
    raise InputError("\n".join(problems))


def expand(spec: GridSpec, resolver: Resolver, runs: Path) -> list[Cell]:
    """All cells, settings in the order of the file with seeds innermost.

    Raises:
        InputError: everything that is wrong with them. Where settings are not as they were meant (an `exclude` that is
            true for nothing), only those configurations are reported that a single part of the grid makes wrong.
    """
    settings, problems = find_settings(spec)
    maker = _CellMaker(spec, resolver, runs)
    cells: dict[str, Cell] = {}
    errors: dict[str, None] = {}
    for setting in settings:
        if maker.is_blamed(setting):
            continue  # a part of it was reported: what else is wrong with it shows once that is right
        refused = None
        try:
            for cell in maker.cells(setting):
                cells[cell.signature] = _merge(cells.get(cell.signature), cell)
        except InputError as error:
            refused = str(error)
        if refused is not None:  # outside the handler, or the resolver's next errors would have this one as context
            message = maker.blame_part(setting, refused, maker.refusal)
            if message or not problems:
                errors[message or maker.blame_combination(setting, refused)] = None
    if not problems and not errors:
        maker.rules.check_all_used()
    if found := dict.fromkeys([*problems, *errors, *maker.rules.problems]):
        raise InputError("\n".join(found))
    return list(cells.values())


def find_cell(cells: Sequence[Cell], name: str) -> Cell:
    """By signature, the beginning of one, or label.

    Raises:
        InputError: there is none, or there are several; names the nearest.
    """
    by_label = [cell for cell in cells if name in (cell.label, *(alias.label for alias in cell.aliases))]
    found = by_label or [cell for cell in cells if name and cell.signature.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"'{name}' is the beginning of {len(found)} cells: {', '.join(c.signature for c in found)}")
    known = [cell.label for cell in cells] + [cell.signature for cell in cells]
    raise InputError(f"there is no cell '{name}'{did_you_mean(name, known)} (`mtp grid status` lists them)")


def axis_names(spec: GridSpec) -> dict[str, str]:
    """Key -> its shortest dotted ending that no other one shares: axes, then keys that only an `include` sets."""
    return short_names(spec.keys)


def baseline_values(spec: GridSpec, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The setting that `values` is compared with: the baseline, and for axes it leaves open, the same value."""
    return {key: values[key] for key in spec.axes if key in values} | dict(spec.baseline) if spec.baseline else None


class _CellMaker:
    """Makes the cells of settings, and finds the part of the grid file to blame where that fails."""

    def __init__(self, spec: GridSpec, resolver: Resolver, runs: Path) -> None:
        self.spec, self.resolver, self.runs = spec, resolver, runs
        self.resolved: dict[str, dict[str, Any] | InputError] = {}
        self.blamed: set[tuple[str, str]] = set()
        """Key and value of the parts of the grid that alone make a configuration wrong."""
        self.rules = ResourceRules(spec.resources, spec.keys, spec.where)
        self.names = axis_names(spec)
        values = {key: list(spec.axes.get(key, ())) for key in spec.keys}
        for given in spec.include:
            for key, value in given.items():
                values[key].append(value)
        self.values = {key: value_names(found) for key, found in values.items()}

    def cells(self, setting: Setting) -> list[Cell]:
        values, spec = setting.values, self.spec
        # Always resolved with seed 0: other keys may interpolate the seed, and the group must not see them differ.
        group = _identity(self.config(values, 0), without_seed=True)
        varying = [key for key in values if len(self.values[key]) > 1 or key not in spec.axes]
        parts = [f"{self.names[key]}={self.values[key][canonical(values[key])]}" for key in varying]
        cells = []
        for seed in setting.seeds:
            config = self.config(values, seed)
            name = _identity(config)
            cells.append(
                Cell(
                    grid=spec.name,
                    values=values,
                    seed=seed,
                    config=config,
                    signature=name,
                    group=group,
                    label=" ".join([*parts, *([f"seed={seed}"] if len(spec.seeds) > 1 else [])]) or spec.name,
                    group_label=" ".join(parts) or spec.name,
                    baseline=is_baseline(spec, values),
                    directory=self.runs / name,
                    resources=self.rules.assign(values, seed, config),
                    retry=spec.retry,
                )
            )
        return cells

    def config(
        self, values: Mapping[str, Any], seed: int, overrides: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """`overrides`: in place of the grid's."""
        config = self.resolve(*self.parts(values, seed, overrides))
        for key, value in values.items():
            if is_file(value):
                look_up(config, key)
        return config

    def parts(
        self, values: Mapping[str, Any], seed: int, overrides: Mapping[str, Any] | None = None
    ) -> tuple[list[Path], dict[str, Any]]:
        """The files of a configuration, and what is set on top of them."""
        files = {key: self.spec.files[value] for key, value in values.items() if is_file(value)}
        plain = {key: value for key, value in values.items() if key not in files}
        common = self.spec.overrides if overrides is None else overrides
        return [*self.spec.configs, *files.values()], {**common, **plain, SEED_KEY: seed}

    def resolve(self, configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Each once: seed 0 of a setting is needed twice, and what is refused is tried once for each suspect."""
        key = canonical([[str(path) for path in configs], overrides])
        if key not in self.resolved:
            try:
                self.resolved[key] = self.resolver(configs, overrides)
            except InputError as error:
                self.resolved[key] = error
        found = self.resolved[key]
        if isinstance(found, InputError):
            raise found
        return found

    def unknown_keys(self, settings: Sequence[Setting]) -> list[str]:
        """Keys that no configuration has, each once and with its place; found without Lightning."""
        found: dict[str, str] = {}
        for setting in settings:
            for message in self.key_errors(setting.values):
                if message not in found:
                    blamed = self.blame_part(setting, message, self.key_errors)
                    found[message] = blamed or self.blame_combination(setting, message)
        return list(found.values())

    def try_rules(self, settings: Sequence[Setting]) -> None:
        """Note what is wrong with the rules of resources, as far as that shows without configurations."""
        for setting in settings:
            for seed in setting.seeds:
                with suppress(InputError):  # the rule names a key that only the configuration has
                    self.rules.assign(setting.values, seed, {})

    def key_errors(self, values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> list[str]:
        try:
            self.resolver.check_keys(*self.parts(values, self.spec.seeds[0], overrides))
        except InputError as error:
            return str(error).splitlines()
        return []

    def refusal(self, values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> list[str]:
        try:
            _identity(self.config(values, self.spec.seeds[0], overrides))
        except InputError as error:
            return [str(error)]
        return []

    def blame_part(self, setting: Setting, message: str, errors: Callable[..., list[str]]) -> str | None:
        """The message, after the place in the grid file that causes it: the first part of the grid that alone, on top
        of `configs`, causes the same. None where no single part does.

        Args:
            errors: (values, overrides) -> what is wrong with them.
        """
        spec = self.spec
        if message in errors({}, {}):
            return f"{spec.where('configs')}: {message}"
        for key, value in spec.overrides.items():
            if message in errors({}, {key: value}):
                return f"{spec.where('overrides', key)} = {shown(value)}: {message}"
        for key, value in setting.values.items():
            if message in errors({key: value}):
                self.blamed.add((key, canonical(value)))
                return f"{self.where(setting, key)} = {shown(value)}: {message}"
        return None

    def is_blamed(self, setting: Setting) -> bool:
        return any((key, canonical(value)) in self.blamed for key, value in setting.values.items())

    def where(self, setting: Setting, key: str) -> str:
        item = setting.included
        if item is not None and key in self.spec.include[item]:
            return self.spec.where("include", item, key)
        return self.spec.where("axes", key, self.spec.axes[key].index(setting.values[key]))

    def blame_combination(self, setting: Setting, message: str) -> str:
        where = self.spec.where("axes") if setting.included is None else self.spec.where("include", setting.included)
        return f"{where}: {', '.join(f'{key} = {shown(value)}' for key, value in setting.values.items())}: {message}"


def _identity(config: Mapping[str, Any], *, without_seed: bool = False) -> str:
    try:
        return signature(config, without_seed=without_seed)
    except TypeError as error:
        raise InputError(f"cannot be written to YAML: {error}") from error


def _merge(first: Cell | None, cell: Cell) -> Cell:
    if first is None:
        return cell
    return replace(first, aliases=(*first.aliases, cell), baseline=first.baseline or cell.baseline)
