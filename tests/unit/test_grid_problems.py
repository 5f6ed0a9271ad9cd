"""What is wrong with a grid and its cells is reported all at once, each with its line, nothing that only follows."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_grid_fakes import FakeResolver, environment, grid_file, resolve
from test_grid_settings import BASELINE, GRID

from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.cell_maker import MOST_TRIED
from mtp_lightning.grid.spec.cells import load_cells


def refused(folder: Path, more: str, **files: str) -> list[str]:
    """The lines of the error, without the name of the grid file."""
    path = grid_file(folder, GRID + more, **files)
    with pytest.raises(InputError) as caught:
        load_cells(path, FakeResolver(), folder)
    return str(caught.value).replace(f"{path}:", "").splitlines()


REFUSED = {
    "nothing": (
        "exclude: [n_future == 3]",
        ["7: exclude: 'n_future == 3' is true for no setting of the grid; correct it, "],
    ),
    "everything": ("exclude:\n- width == 8\n- width == 16", ["7: exclude: leaves nothing of the axes"]),
    "baseline": (
        f"exclude:\n- n_layers == 6\n- n_future < 2\n{BASELINE}",
        ["10: baseline: the baseline is excluded by 'n_future < 2'"],
    ),
    "types": (
        "exclude:\n- width > 8\n- width > 'x'\n- n_future > 'x'",
        ["9: exclude: 'width > 'x'': 8 (a number) and 'x' (text) have no order", "10: exclude: 'n_future > 'x'': 1"],
    ),
    "gpus": (
        "resources:\n  gpus: 2\n  rules: [{when: width > 8, tasks: 4}]",
        ["7: resources: 4 tasks on 2 GPUs are impossible"],
    ),
    "no cell": (
        "resources: {rules: [{when: width > 16, gpus: 2}]}",
        ["7: resources.rules: 'width > 16' is true for"],
    ),
    "rule": (
        "resources:\n  rules:\n  - {when: width > 'a', gpus: 2}\n  - {when: width > 8, gpus: 1}",
        ["9: resources.rules: 'width > 'a'': 8 (a number) and 'a' (text) have no order"],
    ),
    "include": (
        "include:\n- {model.width: 3}\n- model.width: 2\n  model.heads.n_future: 0",
        ["10: include.model.heads.n_future = 0: model.heads.n_future: must be at least 1"],
    ),
    "value": ("  optimizer.lr:\n  - 1\n  - none.yaml", ["9: axes.optimizer.lr: configuration file 'none.yaml' is not"]),
    "key": ("  model.depth:\n  - 4", ["8: axes.model.depth = 4: unknown key 'model.depth'"]),
    "include key": ("include:\n- {trainer.max_step: 3}", ["8: include.trainer.max_step = 3: unknown key"]),
    "include both": (
        "include:\n- {model.n_layers: 2, model.heads.n_future: 6}",
        ["8: include: model.heads.n_future = 6, model.n_layers = 2: model.heads.n_future: too many for the layers"],
    ),
}


@pytest.mark.parametrize(("more", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_told_once_with_its_line(tmp_path: Path, more: str, expected: list[str]) -> None:
    told = refused(tmp_path, more + "\n")
    assert len(told) == len(expected)
    for line, start in zip(told, expected):
        assert line.startswith(start), told


def test_problems_of_the_file_and_unknown_keys_are_reported_together(tmp_path: Path) -> None:
    """And nothing that follows from them."""
    more = """\
  optimizer.lr: fast
  model.heads.mtch: [none]
zip: [[model.heads.n_future, model.width]]
exclude: [width >= 8, lr > 1]
include: [{model.n_layers: 2, model.heads.n_future: 6}]
baseline: {model.width: 9}
resources: {nodes: 0}
sedes: [1]
"""
    told = refused(tmp_path, more)
    assert [line.split(":")[0] for line in told] == ["14", "7", "9", "12", "13", "10", "8"], told
    assert told[-2].endswith("leaves nothing of the axes")
    assert told[-1].endswith("axes.model.heads.mtch = none: unknown key 'model.heads.mtch'; did you mean 'match'?")


UNKNOWN_SECTION, BAD_RESOURCE, BAD_SEEDS = "sedes: [1]", "resources: {nodes: 0}", "seeds: [x]"
UNKNOWN_OVERRIDE, UNKNOWN_AXIS = "overrides: {trainer.max_step: 5}", "  model.heads.mtch: [none]"
NOTHING_EXCLUDED, IMPOSSIBLE = "exclude: [n_future == 3]", "resources: {gpus: 2, tasks: 4}"
NOT_ON_AXIS, REFUSED_VALUE = "baseline: {model.width: 9}", "include: [{model.heads.n_future: 0}]"
AT_ONCE = [
    (UNKNOWN_AXIS, UNKNOWN_SECTION, BAD_RESOURCE, NOTHING_EXCLUDED),
    (UNKNOWN_AXIS, UNKNOWN_OVERRIDE, NOTHING_EXCLUDED, IMPOSSIBLE),
    (UNKNOWN_OVERRIDE, UNKNOWN_SECTION, BAD_SEEDS, BAD_RESOURCE, NOTHING_EXCLUDED, NOT_ON_AXIS),
    (UNKNOWN_AXIS, UNKNOWN_OVERRIDE, UNKNOWN_SECTION, BAD_SEEDS, IMPOSSIBLE, NOTHING_EXCLUDED, NOT_ON_AXIS),
]
TOGETHER = [(NOTHING_EXCLUDED, IMPOSSIBLE, REFUSED_VALUE), (NOTHING_EXCLUDED, REFUSED_VALUE)]


class Unused(FakeResolver):
    def __call__(self, configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError("a cell was resolved")


def places(mistakes: Sequence[str]) -> list[str]:
    """Line and section or key of each, after the six lines of `GRID`."""
    keys = [mistake.split(":")[0].strip() for mistake in mistakes]
    inner = {UNKNOWN_AXIS: "axes.model.heads.mtch", UNKNOWN_OVERRIDE: "overrides.trainer.max_step"}
    inner |= {BAD_RESOURCE: "resources.nodes", NOT_ON_AXIS: "baseline.model.width"}
    inner |= {REFUSED_VALUE: "include.model.heads.n_future"}
    return sorted(f"{line}: {inner.get(text, key)}" for line, (text, key) in enumerate(zip(mistakes, keys), 7))


@pytest.mark.parametrize("mistakes", [*AT_ONCE, *TOGETHER], ids=lambda mistakes: f"{len(mistakes)} mistakes")
def test_as_many_messages_as_mistakes(tmp_path: Path, mistakes: tuple[str, ...]) -> None:
    path = grid_file(tmp_path, GRID + "\n".join(mistakes) + "\n")
    with pytest.raises(InputError) as caught:
        load_cells(path, Unused() if mistakes in AT_ONCE else FakeResolver(), tmp_path)
    lines = str(caught.value).replace(f"{path}:", "").splitlines()
    assert sorted(": ".join(line.split(" = ")[0].split(": ")[:2]) for line in lines) == places(mistakes)


REAL = """
import sys
from pathlib import Path
from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.grid.spec.cell_maker import MOST_TRIED
from mtp_lightning.grid.spec.cells import load_cells
try:
    load_cells(Path(sys.argv[1]), Resolver(None), Path("runs"))
except ValueError as error:
    print(error)
print(sorted({"torch", "lightning", "mlflow"} & set(sys.modules)))
"""
MISSPELT = """\
name: g
configs: [conf/base.yaml, conf/model/tiny.yaml, conf/data/python_stdlib.yaml]
sedes: [1]
overrides: {trainer.max_step: 5}
axes:
  model.heads.n_futur: [1, 2]
  model.backbone.dim: [64]
exclude: [dim == 32]
resources: {nodes: 0}
"""


def test_mistakes_are_answered_before_lightning_is_imported(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(MISSPELT)
    command = [sys.executable, "-c", REAL, "grid.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=True)
    *lines, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert sorted(line.split(":")[1] for line in lines) == ["3", "4", "6", "8", "9"], lines
    assert "there is no key 'model.heads.n_futur'; did you mean 'model.heads.n_future'?" in done.stdout
    assert "overrides.trainer.max_step = 5: there is no key 'trainer.max_step'" in done.stdout


def test_good_items_keep_their_lines_beside_bad_ones(tmp_path: Path) -> None:
    more = """\
exclude:
  - depth > 1
  - n_layers > 'x'
include:
  - {}
  - {trainer.max_step: 3}
resources:
  rules:
    - {when: width > 8}
    - {when: width > 'x', gpus: 1}
"""
    told = refused(tmp_path, more)
    assert sorted(int(line.split(":")[0]) for line in told) == [8, 9, 11, 12, 15, 16], told


def test_what_is_refused_for_many_cells_is_resolved_for_few(tmp_path: Path) -> None:
    resolved = []

    class Counting(FakeResolver):
        def __call__(self, configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
            resolved.append(overrides)
            return resolve(configs, overrides)

    text = GRID.replace("[8, 16]", str([*range(100)])).replace("[1, 2, 4]", "[0]")
    with pytest.raises(InputError, match=r"n_future = 0: model.heads.n_future: must be at least 1"):
        load_cells(grid_file(tmp_path, text), Counting(), tmp_path)
    assert (
        len(resolved) <= 1 + 2 + MOST_TRIED
    )  # one setting, the configurations and n_future alone; no other that has it


def test_the_culprit_is_looked_for_outside_any_handler(tmp_path: Path) -> None:
    """It looks for refusals among the contexts of what jsonargparse raises, and would find that of another cell."""

    class Contextual(FakeResolver):
        def __call__(self, configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
            assert sys.exc_info() == (None, None, None)
            return resolve(configs, overrides)

    path = grid_file(tmp_path, GRID.replace("[1, 2, 4]", "[0]"))
    with pytest.raises(InputError, match=r"axes.model.heads.n_future = 0: "):
        load_cells(path, Contextual(), tmp_path)
