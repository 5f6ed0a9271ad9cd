"""Expansion: order, labels, identity of cells, and who is blamed for a configuration that is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_grid_fakes import GRID, FakeResolver, cells_of, grid_file, load_grid

from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.cells import baseline_values, expand
from mtp_lightning.grid.spec.values import value_names


def test_settings_in_file_order_with_seeds_innermost(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    assert [cell.label for cell in cells] == [f"n_future={n} seed={s}" for n in (1, 2, 4) for s in (0, 1)]
    assert [cell.group_label for cell in cells][::2] == ["n_future=1", "n_future=2", "n_future=4"]
    assert [cell.baseline for cell in cells] == [True, True, False, False, False, False]
    assert cells[5].config["model"]["heads"]["n_future"] == 4
    assert cells[5].config["seed_everything"] == 1
    assert cells[5].config["trainer"]["max_steps"] == 5
    assert cells[5].directory == tmp_path / "runs" / cells[5].signature
    assert len({cell.signature for cell in cells}) == 6


def test_a_group_is_the_seeds_of_a_setting_although_other_keys_follow_the_seed(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    assert cells[0].config["data"]["init_args"]["seed"] != cells[1].config["data"]["init_args"]["seed"]
    assert [cell.group for cell in cells][::2] == [cell.group for cell in cells][1::2]
    assert len({cell.group for cell in cells}) == 3
    other_seeds = cells_of(tmp_path, GRID.replace("[0, 1]", "[1, 7]"))
    assert [cell.group for cell in other_seeds] == [cell.group for cell in cells]
    assert other_seeds[0].signature == cells[1].signature


def test_labels_name_what_varies_by_the_shortest_unambiguous_ending(tmp_path: Path) -> None:
    text = GRID.replace("seeds: [0, 1]", "seeds: [3]").replace(
        "  model.heads.n_future: [1, 2, 4]",
        "  model.heads.n_future: [1]\n  trainer.max_steps: [1, 2]\n  data.init_args.seed: [1]\n  model.width: [8]",
    )
    text = text.replace("overrides: {trainer.max_steps: 5}\n", "")
    assert [cell.label for cell in cells_of(tmp_path, text)] == ["max_steps=1", "max_steps=2"]
    clash = text.replace("data.init_args.seed: [1]", "data.init_args.corpus: [a, b]").replace(
        "model.width: [8]", "optimizer.lr: [0.1, 1e-3]"
    )
    assert cells_of(tmp_path, clash)[1].label == "max_steps=1 corpus=a lr=0.001"


def test_names_of_values_are_short_and_their_own() -> None:
    files = ["conf/a.yaml", "conf/b.yaml", "other/b.yaml"]
    assert list(value_names([*files, "x", 3]).values()) == ["a", "conf/b.yaml", "other/b.yaml", "x", "3"]
    values = [{}, {"n": 4, "kind": "markov"}, {"weights": {"lam": 1.0}, "offsets": [1, 3], "z": {}}]
    assert list(value_names(values).values()) == ["{}", "kind:markov,n:4", "offsets:[1,3],weights.lam:1,z:{}"]
    assert list(value_names([{"a.b": 1}, {"a": {"b": 1}}]).values()) == ['{"a.b":1}', '{"a":{"b":1}}']


def test_an_ending_shared_by_two_axes_is_lengthened(tmp_path: Path) -> None:
    config = {"seed_everything": 0, "a": {"lr": {"x": 0}}, "b": {"lr": {"x": 0}}}

    class Two(FakeResolver):
        def __call__(self, configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
            return {**config, **overrides}

    text = "name: g\nconfigs: [base.yaml]\naxes: {a.lr.x: [1, 2], b.x: [3, 4]}\n"
    cells = expand(load_grid(grid_file(tmp_path, text)), Two(), tmp_path)
    assert cells[0].label == "lr.x=1 b.x=3"


def test_nothing_varies_then_the_grid_names_the_cell(tmp_path: Path) -> None:
    text = GRID.replace("[1, 2, 4]", "[1]").replace("[0, 1]", "[0]")
    assert [cell.label for cell in cells_of(tmp_path, text)] == ["head-count"]


def test_a_value_may_be_a_configuration_file(tmp_path: Path) -> None:
    text = GRID.replace("model.heads.n_future: [1, 2, 4]", "model: [small.yaml, large.yaml]").replace(
        "baseline: {model.heads.n_future: 1}", "baseline: {model: small.yaml}"
    )
    files = {"small": "model: {width: 8}", "large": "model: {width: 64}"}
    cells = cells_of(tmp_path, text, **files)
    assert [cell.label for cell in cells] == [
        "model=small seed=0",
        "model=small seed=1",
        "model=large seed=0",
        "model=large seed=1",
    ]
    assert [cell.config["model"]["width"] for cell in cells] == [8, 8, 64, 64]
    assert [cell.baseline for cell in cells] == [True, True, False, False]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "small.yaml").write_text("model: {width: 9}")
    clash = cells_of(tmp_path, text.replace("large.yaml]", "large.yaml, other/small.yaml]"), **files)
    assert [cell.group_label for cell in clash][::2] == ["model=small.yaml", "model=large", "model=other/small.yaml"]
    with pytest.raises(InputError, match=r"axes.modle = small.yaml: no key 'modle'"):
        cells_of(tmp_path, text.replace("model:", "modle:"), **files)


def test_equal_configurations_are_one_cell(tmp_path: Path) -> None:
    text = GRID.replace("model.heads.n_future: [1, 2, 4]", "model: [a.yaml, b.yaml, c.yaml]").replace(
        "baseline: {model.heads.n_future: 1}", "baseline: {model: b.yaml}"
    )
    cells = cells_of(tmp_path, text, a="model: {width: 8}", b="model: {width: 8.0}", c="model: {width: 9}")
    assert [cell.label for cell in cells][::2] == ["model=a seed=0", "model=c seed=0"]
    assert [alias.label for alias in cells[0].aliases] == ["model=b seed=0"]
    assert cells[0].baseline
    assert [alias.values for alias in cells[0].aliases] == [{"model": "b.yaml"}]


def test_a_partial_baseline_keeps_the_other_axes(tmp_path: Path) -> None:
    text = GRID.replace("axes:\n", "axes:\n  model.width: [8, 16]\n")
    spec = load_grid(grid_file(tmp_path, text))
    at = {"model.width": 16, "model.heads.n_future": 4}
    assert baseline_values(spec, at) == {"model.width": 16, "model.heads.n_future": 1}
    assert sum(cell.baseline for cell in cells_of(tmp_path, text)) == 4


BLAMED = {
    "axis": ("[1, 2, 4]", "[1, 0]", r"grid.yaml:5: axes.model.heads.n_future = 0: model.heads.n_future: must be"),
    "axis key": ("  model.heads.n_future", "  model.heads.n_futur", r"grid.yaml:5: axes.*n_futur = 1: unknown key"),
    "override": ("trainer.max_steps: 5", "trainer.max_step: 5", r"grid.yaml:3: overrides.trainer.max_step = 5: unkn"),
    "both": ("trainer.max_steps: 5", "model.n_layers: 2", r"grid.yaml:5: axes.model.heads.n_future = 4: .*too many"),
}


@pytest.mark.parametrize(("old", "new", "message"), BLAMED.values(), ids=BLAMED)
def test_the_part_at_fault_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = GRID.replace(old, new).replace("baseline: {model.heads.n_future: 1}\n", "")
    with pytest.raises(InputError, match=message):
        cells_of(tmp_path, text)
    assert not (tmp_path / "runs").exists()


def test_a_broken_configuration_file_is_blamed_once(tmp_path: Path) -> None:
    path = grid_file(tmp_path)
    (tmp_path / "base.yaml").write_text("modle: {}")
    with pytest.raises(InputError) as caught:
        expand(load_grid(path), FakeResolver(), tmp_path)
    assert str(caught.value) == f"{path}:2: configs: base.yaml: unknown key 'modle'; did you mean 'model'?"


def test_a_wrong_override_hides_no_wrong_value_of_an_axis(tmp_path: Path) -> None:
    """Every cell is refused for the override first."""
    text = GRID.replace("overrides: {", "overrides: {model.width: 0, ").replace("[1, 2, 4]", "[1, 0, -1]")
    with pytest.raises(InputError) as caught:
        cells_of(tmp_path, text)
    assert [line.split(": ", 1)[1] for line in str(caught.value).splitlines()] == [
        "overrides.model.width = 0: model.width: must be at least 1",
        "axes.model.heads.n_future = 0: model.heads.n_future: must be at least 1",
        "axes.model.heads.n_future = -1: model.heads.n_future: must be at least 1",
    ]


def test_a_value_that_another_key_of_the_grid_makes_good_is_not_refused(tmp_path: Path) -> None:
    text = GRID.replace("overrides: {", "overrides: {model.width: 0, model.n_layers: 9, ").replace(
        "[1, 2, 4]", "[1, 12]"
    )
    (tmp_path / "base.yaml").write_text("model: {n_layers: 2}")
    with pytest.raises(InputError) as caught:
        expand(load_grid(grid_file(tmp_path, text)), FakeResolver(), tmp_path)
    assert "overrides.model.width = 0" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_errors_are_reported_together_and_a_clash_names_the_combination(tmp_path: Path) -> None:
    text = GRID.replace(
        "  model.heads.n_future: [1, 2, 4]", "  model.heads.n_future: [1, 0, 6]\n  model.n_layers: [4, 2]"
    )
    with pytest.raises(InputError) as caught:
        cells_of(tmp_path, text)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "n_future = 0: model.heads.n_future: must be at least 1" in lines[0]
    assert "axes: model.heads.n_future = 6, model.n_layers = 2: model.heads.n_future: too many" in lines[1]
