"""The settings of a grid: the product of its factors, or one factor at a time; without what is excluded, and with what
is included. A factor is an axis, or a group of axes that advance together."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.expressions import Expression
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.grid.spec.values import SEED
from mtp_lightning.units import counted

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    values: Values
    """Axes in the file's order, then what only its include names."""
    seeds: tuple[int, ...]
    included: int | None = None
    """Which item of `include` it comes from; None: from the axes."""


def find_settings(spec: GridSpec) -> tuple[list[Setting], list[str]]:
    """The settings, each once, in the order of the file, and what is wrong with them: an `exclude` that is true for
    nothing or for everything, a baseline that is not among them.

    Raises:
        InputError: so many that no plan of them would end.
    """
    _check_count(spec)
    everything = list(_one_at_a_time(spec) if spec.ablate else _product(spec))
    hits, problems = _excluded(spec, everything)
    gone = set().union(*hits.values())
    kept = [
        Setting(values, seeds)
        for place, values in enumerate(everything)
        if (seeds := tuple(seed for seed in spec.all_seeds if (place, seed) not in gone))
    ]
    if gone and not kept:
        problems.append(f"{spec.where('exclude')}: leaves nothing of the axes")
        kept = [Setting(values, spec.all_seeds) for values in everything]  # to go on looking for problems
    settings: dict[str, Setting] = {}
    for setting in (*kept, *_included(spec)):
        name = canonical(setting.values)
        if (
            name not in settings or settings[name].seeds != spec.all_seeds
        ):  # excluded for some seeds, and included again
            settings[name] = setting
    if spec.baseline and not any(is_baseline(spec, setting.values) for setting in settings.values()):
        by = [f"'{text}'" for text, hit in hits.items() if any(is_baseline(spec, everything[i]) for i, _ in hit)]
        problems.append(f"{spec.where('baseline')}: the baseline is excluded by {', '.join(by)}")
    cut = [setting for setting in settings.values() if set(setting.seeds) != set(spec.all_seeds)]
    if spec.tune and cut:
        what = ", ".join(f"{key}={value}" for key, value in cut[0].values.items())
        problems.append(
            f"{spec.where('exclude')}: leaves {what} at some seeds alone; `tune` tries every value on its own seeds "
            "and compares the best at all others: exclude a value at every seed, or at none"
        )
    return list(settings.values()), problems


MOST_CELLS = 10_000


def _check_count(spec: GridSpec) -> None:
    counts = [len(factor) for factor in _factors(spec)]
    cells = (1 + sum(counts) - len(counts) if spec.ablate else math.prod(counts)) * len(spec.all_seeds)
    if cells > MOST_CELLS:
        product = " + ".join(map(str, counts)) if spec.ablate else " x ".join(map(str, counts))
        seeds = counted(len(spec.all_seeds), "seed")
        raise InputError(
            f"{spec.where('axes')}: {product} values times {seeds} are {cells:,} cells, and "
            f"a grid has {MOST_CELLS:,} at most: give it fewer values, zip axes, or ablate one at a time"
        )


def is_baseline(spec: GridSpec, values: Values) -> bool:
    """Whether others are compared with `values`: they have what the baseline fixes, and no key that is not an axis."""
    return bool(spec.baseline) and all(
        key in spec.axes and (key not in spec.baseline or canonical(value) == canonical(spec.baseline[key]))
        for key, value in values.items()
    )


def _factors(spec: GridSpec) -> list[list[Values]]:
    """The levels of each factor: values of one axis, or of the axes of a group, which stands where its first one
    does."""
    group_of = {key: group for group in spec.zip for key in group}
    groups = dict.fromkeys(group_of.get(key, (key,)) for key in spec.axes)
    return [[dict(zip(group, row)) for row in zip(*(spec.axes[key] for key in group))] for group in groups]


def _in_order(spec: GridSpec, levels: Sequence[Values]) -> Values:
    merged = {key: value for level in levels for key, value in level.items()}
    return {key: merged[key] for key in spec.axes}


def _product(spec: GridSpec) -> Iterator[Values]:
    for levels in product(*_factors(spec)):
        yield _in_order(spec, levels)


def _one_at_a_time(spec: GridSpec) -> Iterator[Values]:
    """The baseline, then for each factor the baseline with every other level of it."""
    yield _in_order(spec, [spec.baseline])
    for levels in _factors(spec):
        for level in levels:
            if any(canonical(value) != canonical(spec.baseline[key]) for key, value in level.items()):
                yield _in_order(spec, [spec.baseline, level])


def _excluded(spec: GridSpec, everything: Sequence[Values]) -> tuple[dict[str, set[tuple[int, int]]], list[str]]:
    """Expression -> places and seeds for which it is true; and problems. Each is tried on everything, so that one whose
    settings another excludes too does not count as true for nothing."""
    hits: dict[str, set[tuple[int, int]]] = {}
    problems = []
    for index, text in enumerate(spec.exclude):
        expression, where = Expression(text, spec.axes, spec.ancestors), spec.where("exclude", index)
        try:
            hits[text] = {
                (place, seed)
                for place, values in enumerate(everything)
                for seed in spec.all_seeds
                if expression.holds({**values, SEED: seed})
            }
        except InputError as error:
            problems.append(f"{where}: {error}")
            continue
        if not hits[text]:
            problems.append(f"{where}: '{text}' is true for no setting of the grid; correct it, or leave it out")
    return hits, problems


def _included(spec: GridSpec) -> Iterator[Setting]:
    for index, given in enumerate(spec.include):
        fixed = {**spec.baseline, **given}
        axes = {key: fixed[key] for key in spec.axes if key in fixed}
        yield Setting({**axes, **given}, spec.all_seeds, index)
