"""Which settings a grid has: zip, exclude, include and ablate, the resources of each, and what is wrong with them."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grid_fakes import CONFIG, cells_of, grid_file, load_grid

from mtp_lightning.errors import InputError
from mtp_lightning.grid.run.process import fit_config
from mtp_lightning.grid.spec.cells import axis_names, baseline_values
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.resources import Resources
from mtp_lightning.grid.spec.settings import find_settings
from mtp_lightning.grid.spec.signature import Number, canonical

GRID = """\
name: g
configs: [base.yaml]
axes:
  model.heads.n_future: [1, 2, 4]
  model.width: [8, 16]
  model.n_layers: [4, 6]
"""
BASELINE = "baseline: {model.heads.n_future: 1, model.width: 8, model.n_layers: 4}\n"


def labels(folder: Path, more: str = "", **files: str) -> list[str]:
    return [cell.label for cell in cells_of(folder, GRID + more, **files)]


def test_a_group_advances_together_where_its_first_axis_stands(tmp_path: Path) -> None:
    more = "zip: [[model.width, model.n_layers]]\n"
    assert labels(tmp_path, more) == [
        f"n_future={n} width={width} n_layers={layers}" for n in (1, 2, 4) for width, layers in ((8, 4), (16, 6))
    ]


def test_one_batch_and_all_of_them_are_two_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`1.0` of Lightning's keys that take a number or a share; of other keys 1 and 1.0 are one value."""
    monkeypatch.setitem(CONFIG["trainer"], "limit_val_batches", None)
    grid = "name: g\nconfigs: [base.yaml]\naxes: {trainer.limit_val_batches: [1, 1.0, 0.5]}\n"
    cells = cells_of(tmp_path, f"{grid}baseline: {{trainer.limit_val_batches: 1.0}}\n")
    assert [cell.label for cell in cells] == [f"limit_val_batches={value}" for value in ("1", "1.0", "0.5")]
    assert [cell.baseline for cell in cells] == [False, True, False]
    assert len({cell.signature for cell in cells}) == 3
    (left,) = cells_of(tmp_path, f"{grid}exclude: [limit_val_batches < 1, limit_val_batches == 1.0]\n")
    assert [left.values, type(left.values["trainer.limit_val_batches"])] == [{"trainer.limit_val_batches": 1}, Number]
    with pytest.raises(InputError, match=r"limit_val_batches: 1.0 is given twice"):
        cells_of(tmp_path, grid.replace("0.5", "1.0"))


def test_what_is_excluded_is_left_out(tmp_path: Path) -> None:
    more = "exclude: [n_future == 4 and n_layers < 6, width == 16]\n"
    assert labels(tmp_path, more) == [
        "n_future=1 width=8 n_layers=4",
        "n_future=1 width=8 n_layers=6",
        "n_future=2 width=8 n_layers=4",
        "n_future=2 width=8 n_layers=6",
        "n_future=4 width=8 n_layers=6",
    ]


def test_single_seeds_are_excluded_and_included_again(tmp_path: Path) -> None:
    more = "seeds: [0, 1]\nexclude: [n_future > 1 or n_layers > 4, seed == 1 and width == 8]\n"
    assert labels(tmp_path, more) == [
        "n_future=1 width=8 n_layers=4 seed=0",
        "n_future=1 width=16 n_layers=4 seed=0",
        "n_future=1 width=16 n_layers=4 seed=1",
    ]
    again = labels(tmp_path, more + "include: [{model.width: 8, model.heads.n_future: 1, model.n_layers: 4}]\n")
    assert again[:2] == ["n_future=1 width=8 n_layers=4 seed=0", "n_future=1 width=8 n_layers=4 seed=1"]
    assert len(again) == 4


def test_an_include_has_the_baseline_elsewhere_and_keys_of_its_own(tmp_path: Path) -> None:
    more = BASELINE + "ablate: true\ninclude: [{model.width: 64, trainer.max_steps: 20}, {model.heads.n_future: 2}"
    cells = cells_of(tmp_path, GRID + more + ", {trainer.max_steps: 30}]\n")
    assert len(cells) == 1 + (2 + 1 + 1) + 2  # the second include is there already
    assert [cell.baseline for cell in cells] == [True] + [False] * 6
    cell = cells[-2]
    assert cell.label == "n_future=1 width=64 n_layers=4 max_steps=20"
    assert (cell.config["model"]["width"], cell.config["trainer"]["max_steps"]) == (64, 20)
    spec = load_grid(tmp_path / "grid.yaml")
    base = baseline_values(spec, cell.values)
    assert base == spec.baseline
    same = [cell.label for cell in cells if canonical(cell.values) == canonical(base)]
    assert same == ["n_future=1 width=8 n_layers=4"]
    assert not any(cell.aliases for cell in cells)
    assert axis_names(spec)["trainer.max_steps"] == "max_steps"


def test_an_include_without_a_baseline_is_as_the_configurations_have_it(tmp_path: Path) -> None:
    more = "include: [{model: big.yaml}, {optimizer.lr: 0.001, model.width: 32}]\n"
    *_, big, same = cells_of(tmp_path, GRID + more, big="model: {width: 99}")
    assert (big.label, big.values, big.config["model"]["width"]) == ("model=big", {"model": "big.yaml"}, 99)
    assert (same.label, same.config["model"]) == ("width=32 lr=0.001", CONFIG["model"])


def test_an_include_equal_to_a_setting_is_the_same_cell(tmp_path: Path) -> None:
    more = "overrides: {trainer.max_steps: 5}\ninclude: [{model.heads.n_future: 1, trainer.max_steps: 5}]\n"
    cells = cells_of(tmp_path, GRID.replace("[8, 16]", "[32]").replace("[4, 6]", "[4]") + more)
    assert [cell.label for cell in cells] == ["n_future=1", "n_future=2", "n_future=4"]
    assert [alias.label for alias in cells[0].aliases] == ["n_future=1 max_steps=5"]


def test_one_factor_at_a_time(tmp_path: Path) -> None:
    more = BASELINE + "ablate: true\n"
    assert labels(tmp_path, more) == [
        "n_future=1 width=8 n_layers=4",
        "n_future=2 width=8 n_layers=4",
        "n_future=4 width=8 n_layers=4",
        "n_future=1 width=16 n_layers=4",
        "n_future=1 width=8 n_layers=6",
    ]
    assert labels(tmp_path, more + "zip: [[model.width, model.n_layers]]\nexclude: [n_future == 4]\n") == [
        "n_future=1 width=8 n_layers=4",
        "n_future=2 width=8 n_layers=4",
        "n_future=1 width=16 n_layers=6",
    ]


RULES = """\
resources:
  gpus: 1
  minutes: 60
  rules:
    - when: n_future >= 2
      gpus: 2
    - {when: n_future == 4 or max_steps > 10, gpus: 8, nodes: 2}
include: [{model.width: 64, trainer.max_steps: 20}]
retry: 2
"""


def test_resources_by_rule_the_last_wins_key_by_key(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, GRID.replace("[8, 16]", "[8]").replace("[4, 6]", "[4]") + RULES)
    assert [cell.resources for cell in cells] == [
        Resources(gpus=1, minutes=60),
        Resources(gpus=2, minutes=60),
        Resources(gpus=8, minutes=60, nodes=2),
        Resources(gpus=8, minutes=60, nodes=2),  # n_future is as the configuration has it
    ]
    assert {cell.retry for cell in cells} == {2}


def test_a_cells_configuration_follows_its_resources(tmp_path: Path) -> None:
    one, two, eight, *_ = cells_of(tmp_path, GRID.replace("[8, 16]", "[8]").replace("[4, 6]", "[4]") + RULES)
    trainers = [fit_config(cell)["trainer"] for cell in (one, two, eight)]
    assert fit_config(one)["ckpt_path"] == "auto", "a cell that was killed goes on"
    assert [trainer["devices"] for trainer in trainers] == [1, 2, 8]
    assert [trainer.get("num_nodes") for trainer in trainers] == [None, None, 2]
    assert eight.config["trainer"]["devices"] == 1


def spec_of(axes: Mapping[str, Sequence[int]], **more: Any) -> GridSpec:
    return GridSpec(Path("grid.yaml"), "g", (), {key: tuple(values) for key, values in axes.items()}, **more)


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@settings(deadline=None)
@given(sizes, st.lists(st.integers(1, 4), max_size=2), st.integers(2, 3), st.booleans())
def test_settings_are_the_product_of_the_factors(plain: list[int], groups: list[int], wide: int, ablate: bool) -> None:
    axes = {f"a{i}": range(size) for i, size in enumerate(plain)}
    zips = tuple(tuple(f"z{i}_{j}" for j in range(wide)) for i in range(len(groups)))
    axes |= {key: range(size) for group, size in zip(zips, groups) for key in group}
    baseline = dict.fromkeys(axes, 0)
    found, problems = find_settings(spec_of(axes, zip=zips, baseline=baseline, ablate=ablate))
    factors = [*plain, *groups]
    assert not problems
    assert len(found) == (1 + sum(size - 1 for size in factors) if ablate else prod(factors))
    assert all(len({setting.values[key] for key in group}) == 1 for setting in found for group in zips)
    assert all(list(setting.values) == list(axes) for setting in found)
    if ablate:
        changed = [{key.split("_")[0] for key in axes if setting.values[key]} for setting in found]
        assert sorted(map(len, changed)) == [0] + [1] * (len(found) - 1)


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 6), st.sampled_from([(0,), (0, 1)]))
def test_excluded_and_kept_are_the_whole(plain: list[int], limit: int, seeds: tuple[int, ...]) -> None:
    axes = {f"a{i}": range(size) for i, size in enumerate(plain)}
    total = " + ".join([*axes, "seed"])
    whole = {(*values, seed) for values in product(*axes.values()) for seed in seeds}

    def kept(expression: str) -> set[tuple[int, ...]]:
        found, problems = find_settings(spec_of(axes, seeds=seeds, exclude=(expression,)))
        nothing = any("leaves nothing" in problem for problem in problems)
        return set() if nothing else {(*s.values.values(), seed) for s in found for seed in s.seeds}

    low, high = kept(f"{total} > {limit}"), kept(f"not {total} > {limit}")
    assert low | high == whole
    assert not low & high
    assert low == {values for values in whole if sum(values) <= limit}


EXPAND = """
import sys, time
from pathlib import Path
from test_grid_fakes import CONFIG, FakeResolver
from mtp_lightning.grid.spec.cells import load_cells
FakeResolver.__call__ = lambda self, configs, overrides: {**CONFIG, **overrides}
FakeResolver.check_keys = lambda self, configs, overrides: None
start = time.process_time()
path = Path(sys.argv[1])
print(len(load_cells(path, FakeResolver(), path.parent)[1]))
print(time.process_time() - start)
"""


@pytest.mark.slow  # it judges seconds
def test_a_thousand_cells_are_quick(tmp_path: Path) -> None:
    """Without what a resolver takes, and in a process of its own: here every call has its types checked."""
    text = GRID.replace("[1, 2, 4]", str([*range(25)])).replace("[8, 16]", str([*range(40)])).replace("[4, 6]", "[0]")
    path = grid_file(tmp_path, text + "exclude: [n_future == 3 and width == 4]\nresources: {gpus: 1}\n")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    }
    ran = subprocess.run(
        [sys.executable, "-c", EXPAND, path], capture_output=True, text=True, check=True, env=environment
    )
    cells, seconds = ran.stdout.split()
    assert cells == "999"
    assert float(seconds) < 0.5


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            "seeds: [0, 1, 2]\n",
            r"grid.yaml:3: axes: 100 x 100 x 100 values times 3 seeds are 3,000,000 cells",
        ),
        ("", "100 x 100 x 100 values times 1 seed are 1,000,000 cells, and a grid has 10,000 at most"),
    ],
)
def test_more_cells_than_a_plan_could_list_are_refused_at_once(tmp_path: Path, more: str, says: str) -> None:
    values = [*range(1, 101)]
    axes = f"axes:\n  model.heads.n_future: {values}\n  model.width: {values}\n  model.n_layers: {values}\n"
    with pytest.raises(InputError, match=says):
        cells_of(tmp_path, f"name: g\nconfigs: [base.yaml]\n{axes}{more}")


def test_zipped_and_ablated_axes_are_counted_as_they_are(tmp_path: Path) -> None:
    values = [*range(1, 101)]
    axes = f"axes:\n  model.heads.n_future: {values}\n  model.width: {values}\n  model.n_layers: {values}\n"
    zipped = "zip: [[model.heads.n_future, model.width, model.n_layers]]\n"
    ablated = "baseline: {model.heads.n_future: 1, model.width: 1, model.n_layers: 1}\nablate: true\n"
    for more, count in ((zipped, 100), (ablated, 298)):
        path = grid_file(tmp_path, f"name: g\nconfigs: [base.yaml]\n{axes}{more}")
        settings_, problems = find_settings(load_grid(path))
        assert (len(settings_), problems) == (count, [])
