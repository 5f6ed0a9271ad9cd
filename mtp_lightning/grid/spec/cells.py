"""From a grid to its cells: its settings, times the seeds, each with its full configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.grid.spec.cell_maker import Cell, CellMaker
from mtp_lightning.grid.spec.grid_spec import GridSpec, read_grid
from mtp_lightning.grid.spec.labels import axis_names
from mtp_lightning.grid.spec.settings import find_settings

__all__ = ["Cell", "axis_names", "baseline_values", "check_precision", "expand", "find_cell", "load_cells"]


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
        unknown: dict[str, None] = {}
        for one in spec.parts:
            settings, more = find_settings(one)
            maker = CellMaker(one, resolver, runs)
            unknown |= dict.fromkeys(maker.unknown_keys(settings))
            if problems or unknown:
                maker.try_rules(settings)
                problems = [*problems, *more, *maker.rules.problems]
        if not problems and not unknown:
            return spec, expand(spec, resolver, runs)
        problems = [*dict.fromkeys([*problems, *unknown])]
    raise InputError("\n".join(problems))


def expand(spec: GridSpec, resolver: Resolver, runs: Path) -> list[Cell]:
    """All cells; those of a chain stage by stage.

    Raises:
        InputError: everything that is wrong with them; of a chain, with the first stage that is wrong.
    """
    if not spec.stages:
        return _expand(spec, resolver, runs, ())
    found: dict[str, list[Cell]] = {}
    for stage in spec.stages:
        found[stage.stage] = _expand(stage, resolver, runs, found[stage.ancestors[0]] if stage.ancestors else ())
    return list({cell.signature: cell for cells in found.values() for cell in cells}.values())


def _expand(spec: GridSpec, resolver: Resolver, runs: Path, parents: Sequence[Cell]) -> list[Cell]:
    """Settings in the order of the file with seeds innermost.

    Raises:
        InputError: everything that is wrong with them. Where settings are not as they were meant (an `exclude` that is
            true for nothing), only those configurations are reported that a single part of the grid makes wrong.
    """
    settings, problems = find_settings(spec)
    maker = CellMaker(spec, resolver, runs, parents)
    settings = maker.with_parents(settings)
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
    if errors:
        errors |= dict.fromkeys(maker.wrong_values(settings))
    if not problems and not errors:
        maker.rules.check_all_used()
    if found := dict.fromkeys([*problems, *errors, *maker.rules.problems]):
        raise InputError("\n".join(found))
    return list(cells.values())


def check_precision(spec: GridSpec, cells: Sequence[Cell]) -> None:
    """
    Raises:
        InputError: cells ask for GPUs, and their precision, part of their identity, is that of this machine.
    """
    found = [cell for cell in cells if cell.native_precision and cell.resources.gpus]
    if found:
        here = found[0].config["trainer"]["precision"]
        labels = f"{found[0].label}{f' and {len(found) - 1} more' if found[1:] else ''}"
        raise InputError(
            f"{spec.path}: {labels}: resources.gpus asks for GPUs, and trainer.precision follows this machine, not "
            f"those: it is '{here}' here. Set it in the grid, as in `overrides: {{trainer.precision: bf16-mixed}}`; "
            "cells that have run in the same keep their names"
        )


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


def baseline_values(spec: GridSpec, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The setting that `values` is compared with: the baseline, and for axes it leaves open, the same value."""
    return {key: values[key] for key in spec.axes if key in values} | dict(spec.baseline) if spec.baseline else None


def _merge(first: Cell | None, cell: Cell) -> Cell:
    if first is None:
        return cell
    return replace(first, aliases=(*first.aliases, cell), baseline=first.baseline or cell.baseline)
