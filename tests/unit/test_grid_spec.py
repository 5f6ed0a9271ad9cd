"""The grid file: what is read, and the one message for everything that is wrong with it."""

from pathlib import Path

import pytest
from test_grid_fakes import GRID, find, grid_file

from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec import load_grid


def test_a_grid_is_read(tmp_path: Path) -> None:
    spec = load_grid(grid_file(tmp_path), find)
    assert spec.name == "head-count"
    assert spec.configs == (tmp_path / "base.yaml",)
    assert spec.axes == {"model.heads.n_future": (1, 2, 4)}
    assert spec.overrides == {"trainer.max_steps": 5}
    assert spec.seeds == (0, 1)
    assert spec.baseline == {"model.heads.n_future": 1}
    assert spec.compare == ("val/loss/head_1", "decode/speedup")


def test_only_name_configs_and_axes_are_needed(tmp_path: Path) -> None:
    spec = load_grid(grid_file(tmp_path, "name: a\nconfigs: [base.yaml]\naxes: {model.width: [1e2]}\n"), find)
    assert spec.axes == {"model.width": (100.0,)}  # a float, which YAML 1.1 would read as text
    assert spec.seeds == (0,)
    assert spec.compare == ("val/loss/head_1",)


BAD = {
    "typo": ("seeds:", "sedes:", r"grid.yaml:6: sedes: unknown key; did you mean 'seeds'\?"),
    "later": ("seeds:", "zip:", "grid.yaml:6: zip: unknown key"),
    "no name": ("name: head-count\n", "", "name: missing"),
    "name": ("head-count", "a/b", "grid.yaml:1: name: 'a/b' cannot name a folder"),
    "dots": ("head-count", "..", "cannot name a folder"),
    "configs": ("[base.yaml]", "base.yaml", "grid.yaml:2: configs: must be a list"),
    "no config": ("base.yaml", "bsae.yaml", "grid.yaml:2: configs: configuration file 'bsae.yaml' is not there"),
    "no values": ("[1, 2, 4]", "[]", "grid.yaml:5: axes.model.heads.n_future: has no values"),
    "one value": ("[1, 2, 4]", "4", "grid.yaml:5: axes.model.heads.n_future: must be a list of values, not a number"),
    "twice": ("[1, 2, 4]", "[1, 2, 2.0]", "axes.model.heads.n_future: 2.0 is given twice"),
    "date": ("[1, 2, 4]", "[2026-01-01]", "axes.model.heads.n_future: datetime.date.* quote it"),
    "file": ("[1, 2, 4]", "[1, big.yaml]", "grid.yaml:5: axes.model.heads.n_future: configuration file 'big.yaml'"),
    "key": ("  model.heads.n_future", "  model heads", "grid.yaml:5: axes.model heads: is not a dotted"),
    "hardware": ("  model.heads.n_future", "  trainer.devices", "cannot be an axis: .*hardware"),
    "seed axis": ("  model.heads.n_future", "  seed_everything", "seeds are set by the key `seeds`"),
    "both": ("trainer.max_steps: 5", "model.heads.n_future: 5", "overrides.model.heads.n_future: is an axis too"),
    "seeds": ("[0, 1]", "[0, 0]", "grid.yaml:6: seeds: 0 is given twice"),
    "seed": ("[0, 1]", "[0, x]", "grid.yaml:6: seeds: must be a list of whole numbers; 'x' is text"),
    "bool": ("[0, 1]", "[true]", "'?True'? is true/false"),
    "negative": ("[0, 1]", "[-1]", "seeds: -1 is outside"),
    "base key": ("{model.heads.n_future: 1}", "{model.n_future: 1}", "baseline.model.n_future: is not an axis; did"),
    "base value": ("n_future: 1}", "n_future: 3}", "grid.yaml:7: baseline.*: 3 is not on the axis, which has 1, 2, 4"),
    "base kind": ("{model.heads.n_future: 1}", "[1]", "baseline: must be a mapping, not a list"),
    "metric": ("decode/speedup", "pass@1", "grid.yaml:8: compare: 'pass@1' is no metric name"),
    "metrics": ("decode/speedup", "val/loss/head_1", "compare: 'val/loss/head_1' is given twice"),
    "key twice": ("seeds: [0, 1]", "seeds: [0]\nseeds: [1]", "grid.yaml:7: seeds: written twice, first on line 6"),
    "yaml": ("[0, 1]", "[0, 1", "grid.yaml:7: not valid YAML"),
}


@pytest.mark.parametrize(("old", "new", "message"), BAD.values(), ids=BAD)
def test_bad_files_name_file_line_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GRID
    with pytest.raises(InputError, match=message) as caught:
        load_grid(grid_file(tmp_path, GRID.replace(old, new)), find)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "text\n", "axes: {}\nname: a\nconfigs: [base.yaml]\n"])
def test_files_that_are_no_grid(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"grid\.yaml"):
        load_grid(grid_file(tmp_path, text), find)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read: No such file"):
        load_grid(tmp_path / "none.yaml", find)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_grid(tmp_path, find)
    (tmp_path / "grid.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8"):
        load_grid(tmp_path / "grid.yaml", find)
