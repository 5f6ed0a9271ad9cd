"""A cell, and how the cells of a setting are made; the part of the grid file to blame where that fails."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtp_lightning.config.initial_weights import cell_path, check_chained, weights_identity
from mtp_lightning.config.keys.kept_documents import kept_by_content
from mtp_lightning.config.keys.key_origins import KeyOrigins, arguments
from mtp_lightning.config.keys.linked_keys import SEED_KEY
from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.labels import Labels
from mtp_lightning.grid.spec.resources import ResourceRules, Resources
from mtp_lightning.grid.spec.settings import Setting, is_baseline
from mtp_lightning.grid.spec.signature import canonical, signature
from mtp_lightning.grid.spec.stages import parents_values, taken_over, without_stage
from mtp_lightning.grid.spec.values import is_file, look_up, shown

PRECISION, NATIVE = "trainer.precision", "${native_precision:"
MOST_TRIED = 20
"""Values that are each tried alone when a grid is refused: some tenths of a second each."""


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
    parent: str | None = None
    """What it begins with the weights of: the signature of another cell, or a path."""
    follows: bool = False
    """Whether the parent is a cell of the same grid, which has to be finished first."""
    parent_label: str | None = None
    """`pretrain n_future=4`: the parent without its seed, which is the cell's; or the path."""
    pause_at: int | None = None
    """The step of a gate, before which it is; set by `run.gate`, from its files."""
    native_precision: bool = False
    """Whether its `trainer.precision` is that of the machine that made the cell: `${native_precision:}`."""
    aliases: tuple["Cell", ...] = ()
    """Other combinations of the grid with the same configuration."""


class CellMaker:
    """Makes the cells of settings, and finds the part of the grid file to blame where that fails."""

    def __init__(self, spec: GridSpec, resolver: Resolver, runs: Path, parents: Sequence[Cell] = ()) -> None:
        self.spec, self.resolver, self.runs = spec, resolver, runs
        self.parents = {(canonical(one.values), one.seed): one for cell in parents for one in (cell, *cell.aliases)}
        """Cells of the stage before, by values and seed."""
        self.resolved: dict[str, dict[str, Any] | InputError] = {}
        self.native: dict[str, bool] = {}
        self.blamed: set[tuple[str, str]] = set()
        """Key and value of the parts of the grid that alone make a configuration wrong."""
        self.rules = ResourceRules(spec.resources, spec.keys, spec.where, spec.ancestors)
        self.labels = Labels(spec)

    def with_parents(self, settings: Sequence[Setting]) -> list[Setting]:
        """Without those that no cell of the stage before has the values of: it left them out.

        Raises:
            InputError: none is left, or a seed that the stage before does not have.
        """
        if not self.spec.ancestors:
            return list(settings)
        before, known = self.spec.ancestors[0], {name for name, _ in self.parents}
        kept = [one for one in settings if canonical(parents_values(one.values, self.spec.ancestors)) in known]
        if not kept:
            raise InputError(f"{self.spec.where('axes')}: no cell of stage '{before}' has any of these values")
        seeds = {seed for _, seed in self.parents}
        if missing := [str(seed) for seed in self.spec.seeds if seed not in seeds]:
            what = f"stage '{before}', whose weights it begins with, has no seed {', '.join(missing)}"
            raise InputError(f"{self.spec.where('seeds')}: {what}")
        return kept

    def parent(self, values: Mapping[str, Any], seed: int) -> Cell | None:
        """The cell whose weights one of this stage begins with."""
        stages = self.spec.ancestors
        return self.parents.get((canonical(parents_values(values, stages)), seed)) if stages else None

    def cells(self, setting: Setting) -> list[Cell]:
        values, spec = setting.values, self.spec
        if spec.ancestors:
            setting = replace(setting, seeds=tuple(seed for seed in setting.seeds if self.parent(values, seed)))
        if not setting.seeds:
            return []
        parent = self.parent(values, setting.seeds[0])
        # Always resolved with seed 0: other keys may interpolate the seed, and the group must not see them differ.
        group = _identity(_begun(self.config(values, 0), None if parent is None else parent.group), without_seed=True)
        parts = self.labels.parts(values)
        cells = []
        for seed in setting.seeds:
            config = self.config(values, seed)
            parent = self.parent(values, seed)
            if parent is not None:
                config = _begun(config, parent.signature)
                check_chained(parent.config, config, parent.label)
            name = _identity(config)
            path = _begins_with(config)
            label = " ".join([*parts, *([f"seed={seed}"] if len(spec.all_seeds) > 1 else [])])
            cells.append(
                Cell(
                    grid=spec.name,
                    values=values,
                    seed=seed,
                    config=config,
                    signature=name,
                    group=group,
                    label=" ".join(filter(None, [spec.stage, label])) or spec.name,
                    group_label=" ".join(parts) or spec.name,
                    baseline=is_baseline(spec, values),
                    directory=self.runs / name,
                    resources=self.rules.assign(values, seed, config),
                    retry=spec.retry,
                    parent=path if parent is None else parent.signature,
                    follows=parent is not None,
                    parent_label=path if parent is None else parent.label.removesuffix(f" seed={seed}"),
                    native_precision=self.has_native_precision(values),
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
                look_up(config, without_stage(key, self.spec.ancestors))
        return config

    def parts(
        self, values: Mapping[str, Any], seed: int, overrides: Mapping[str, Any] | None = None
    ) -> tuple[list[Path], dict[str, Any]]:
        """The files of a configuration, and what is set on top of them."""
        common = self.spec.overrides if overrides is None else overrides
        values = taken_over(values, self.spec.ancestors, common)
        files = {key: self.spec.files[value] for key, value in values.items() if is_file(value)}
        plain = {key: value for key, value in values.items() if key not in files}
        begun = {"model.init.path": cell_path()} if self.spec.ancestors else {}
        return [*self.spec.configs, *files.values()], {**begun, **common, **plain, SEED_KEY: seed}

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

    def has_native_precision(self, values: Mapping[str, Any]) -> bool:
        configs, overrides = self.parts(values, 0)
        args = arguments(configs, {key: value for key, value in overrides.items() if PRECISION.startswith(key)})
        if (name := canonical(args)) not in self.native:
            origin = KeyOrigins(args).find(PRECISION)
            self.native[name] = origin is not None and NATIVE in str(origin.value)
        return self.native[name]

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

    def wrong_values(self, settings: Sequence[Setting]) -> list[str]:
        """Overrides and values of axes that are refused on top of `configs` alone, each with its place: the first
        refusal hid them. What names another key of the grid is left out, since that may have another value there."""
        spec, found = self.spec, []
        if self.refusal({}, {}):
            return []
        parts: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = []
        parts += [(spec.where("overrides", key), key, {}, {key: value}) for key, value in spec.overrides.items()]
        for one in settings:
            parts += [(self.where(one, key), key, {key: value}, {}) for key, value in one.values.items()]
        others = {*spec.overrides, *spec.keys}
        tried = {(part[0], canonical(part[2])): part for part in parts}
        for where, key, values, overrides in list(tried.values())[:MOST_TRIED]:
            for message in self.refusal(values, overrides):
                if not any(other in message for other in others - {key}):
                    found.append(f"{where} = {shown((values or overrides)[key])}: {message}")
        return found

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


def _begun(config: dict[str, Any], parent: str | None) -> dict[str, Any]:
    """The configuration with the signature of the cell that it begins with, where there is one, in the path's place."""
    if parent is None:
        return config
    model = config["model"]
    return {**config, "model": {**model, "init": {**model["init"], "path": cell_path(parent)}}}


def _begins_with(config: Mapping[str, Any]) -> str | None:
    """`model.init.path`; of other people's models there may be none."""
    node: Any = config
    for key in ("model", "init", "path"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return None if node is None else str(node)


def _identity(config: Mapping[str, Any], *, without_seed: bool = False) -> str:
    """The weights that a cell begins with, and lists of kept documents, are part of it by their content."""
    path = _begins_with(config)
    if path is not None:
        init = {**config["model"]["init"], "path": weights_identity(path)}
        config = {**config, "model": {**config["model"], "init": init}}
    if "data" in config:
        config = {**config, "data": kept_by_content(config["data"])}
    try:
        return signature(config, without_seed=without_seed)
    except TypeError as error:
        raise InputError(f"cannot be written to YAML: {error}") from error
