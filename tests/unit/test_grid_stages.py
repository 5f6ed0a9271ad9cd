"""Chains in one grid file: which cell begins with which, what it takes over, names, and what is wrong by its line."""

from pathlib import Path
from typing import Any

import pytest
import test_grid_fakes
from test_grid_fakes import FakeHouse, FakeResolver, finish, grid_file, house, launch, load_grid, starts, states
from test_grid_schema import VALIDATOR
from test_grid_slurm_fakes import FakeSlurm, slurm

from mtp_lightning.errors import InputError
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.run.process import fit_config
from mtp_lightning.grid.run.state import State, Status
from mtp_lightning.grid.run.status import read_status
from mtp_lightning.grid.slurm import submit
from mtp_lightning.grid.slurm.submissions import Submissions
from mtp_lightning.grid.spec import cell_maker
from mtp_lightning.grid.spec.cells import Cell, expand, find_cell, load_cells
from mtp_lightning.yaml_lines import read_yaml

__all__ = ["house", "slurm"]

CHAIN = """\
name: chain
configs: [base.yaml]
overrides: {trainer.max_steps: 5}
seeds: [0, 1]
stages:
  - name: pretrain
    axes: {model.heads.n_future: [1, 4], optimizer.lr: [0.1, 0.2]}
    exclude: [n_future == 4 and lr == 0.2]
  - name: finetune
    from: pretrain
    configs: [more.yaml]
    overrides: {trainer.max_steps: 3, optimizer.lr: 0.05}
    axes: {model.heads.n_future: [1, 4], pretrain.optimizer.lr: [0.1]}
    exclude: [n_future != 1 and n_future != pretrain.n_future]
    baseline: {pretrain.model.heads.n_future: 1, model.heads.n_future: 1}
  - name: frozen
    from: finetune
    overrides: {model.heads.n_future: 2, model.init.heads: copy}
"""


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    init = {"path": None, "heads": "keep", "unembedding": "keep", "vocabulary": "keep"}
    config: dict[str, Any] = test_grid_fakes.CONFIG
    monkeypatch.setitem(config, "model", {**config["model"], "init": init})
    monkeypatch.setattr(cell_maker, "check_chained", lambda *_: None)


def chain(folder: Path, text: str = CHAIN) -> list[Cell]:
    spec = load_grid(grid_file(folder, text, more="data: {num_workers: 2}\n".replace("data: ", "data: {init_args: ")
                               .replace("2}", "3}}")))  # fmt: skip
    return expand(spec, FakeResolver(), folder / "runs")


def by_label(cells: list[Cell]) -> dict[str, Cell]:
    return {cell.label: cell for cell in cells}


def test_every_cell_begins_with_the_one_of_its_values_and_seed(tmp_path: Path) -> None:
    cells = by_label(chain(tmp_path))
    assert list(cells)[:6] == [
        f"pretrain n_future={n} lr={lr} seed={seed}" for n, lr in ((1, 0.1), (1, 0.2), (4, 0.1)) for seed in (0, 1)
    ]
    tuned = [
        f"finetune pretrain.n_future={p} n_future={n} seed={s}" for p, n in ((1, 1), (4, 1), (4, 4)) for s in (0, 1)
    ]
    assert list(cells)[6:12] == tuned
    assert [label for label in cells if label.startswith("frozen")] == [
        f"frozen pretrain.n_future={p} finetune.n_future={n} seed={s}"
        for p, n in ((1, 1), (4, 1), (4, 4))
        for s in (0, 1)
    ]
    for label, parent in (
        (tuned[3], "pretrain n_future=4 lr=0.1 seed=1"),
        ("frozen pretrain.n_future=4 finetune.n_future=1 seed=1", tuned[3]),
    ):
        child = cells[label]
        assert (child.parent, child.follows) == (cells[parent].signature, True)
        assert child.config["model"]["init"]["path"] == f"cell:{child.parent}"
        assert child.parent_label == parent.removesuffix(" seed=1")
    assert cells[tuned[0]].baseline
    assert not cells[tuned[2]].baseline


def test_a_stage_takes_over_its_parents_values_where_it_sets_none(tmp_path: Path) -> None:
    cells = by_label(chain(tmp_path))
    tuned = cells["finetune pretrain.n_future=4 n_future=1 seed=0"].config
    assert (tuned["model"]["heads"]["n_future"], tuned["optimizer"]["lr"], tuned["trainer"]["max_steps"]) == (
        1,
        0.05,
        3,
    )
    assert tuned["data"]["init_args"]["num_workers"] == 3
    frozen = cells["frozen pretrain.n_future=4 finetune.n_future=1 seed=0"].config
    assert (frozen["model"]["heads"]["n_future"], frozen["optimizer"]["lr"], frozen["trainer"]["max_steps"]) == (
        2,
        0.1,
        5,
    )
    assert frozen["model"]["init"]["heads"] == "copy"


def test_signatures_follow_the_parents_and_groups_have_all_seeds(tmp_path: Path) -> None:
    cells, other = (
        chain(tmp_path),
        chain(tmp_path, CHAIN.replace("lr: [0.1, 0.2]", "lr: [0.1, 0.2], model.width: [64]")),
    )
    assert not {cell.signature for cell in cells} & {cell.signature for cell in other}
    groups = {cell.group: [] for cell in cells}  # type: ignore[var-annotated]
    for cell in cells:
        groups[cell.group].append(cell.seed)
    assert list(groups.values()) == [[0, 1]] * 9
    assert cells == chain(tmp_path)


def test_the_run_is_given_its_parents_folder(tmp_path: Path) -> None:
    cells = chain(tmp_path)
    child = next(cell for cell in cells if cell.follows)
    assert fit_config(child)["model"]["init"]["path"] == str(tmp_path / "runs" / str(child.parent))
    assert fit_config(cells[0])["model"]["init"]["path"] is None


def test_children_run_after_their_parents(tmp_path: Path) -> None:
    cells = chain(tmp_path, CHAIN.replace("[0, 1]", "[0]", 1))
    script = "(cell.parent / 'order').open('a').write(cell.name + '\\n'); finish()"
    launched, _ = launch(list(reversed(cells)), script)
    assert {outcome.state for outcome in launched.outcomes.values()} == {State.FINISHED}
    order = (tmp_path / "runs/order").read_text().split()
    assert all(order.index(str(cell.parent)) < order.index(cell.signature) for cell in cells if cell.follows)
    assert [starts(cell) for cell in cells] == [1] * 9


def test_a_failed_parent_blocks_what_begins_with_it_and_nothing_else(tmp_path: Path) -> None:
    cells = chain(tmp_path, CHAIN.replace("[0, 1]", "[0]", 1))
    named = by_label(cells)
    failing = named["pretrain n_future=4 lr=0.1"]
    launched, display = launch(cells, f"sys.exit(3) if cell.name == '{failing.signature}' else finish()")
    blocked = [cell for cell in cells if launched.outcomes[cell.signature].state is State.BLOCKED]
    assert [cell.label for cell in blocked] == [label for label in named if "pretrain.n_future=4" in label]
    why = f"begins with the weights of pretrain n_future=4 lr=0.1 seed=0 ({failing.signature}), which is failed"
    assert launched.outcomes[blocked[0].signature].reason == why
    assert f"{blocked[0].label}: blocked: {why}" in display.notes
    assert not any(cell.directory.exists() for cell in blocked)
    rows = {row.cell.label: row for row in read_status(cells, tmp_path / "runs", update=False).rows}
    assert [rows[cell.label].state for cell in blocked] == [State.BLOCKED] * 4
    assert rows[blocked[0].label].reason == why
    assert rows[blocked[-1].label].json()["parent"] == blocked[-1].parent
    launched, _ = launch(cells)  # once it is well, all of them run
    assert states(cells) == ["finished"] * 9


def test_on_slurm_a_child_begins_when_its_parent_has_ended_well(
    slurm: FakeSlurm,
    house: FakeHouse,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submit, "checkout", lambda: None)
    cells = chain(tmp_path, CHAIN.replace("[0, 1]", "[0]", 1))
    finish(cells[0])

    def waits() -> list[str]:
        """What the arrays that were submitted since the last call wait for."""
        calls = slurm.folder / "calls"
        lines = [line for line in calls.read_text().splitlines() if line.startswith("sbatch --parsable")]
        calls.unlink()
        assert all(("--kill-on-invalid-dep=yes" in line) == ("afterok" in line) for line in lines)
        return [line.partition("afterok:")[2].partition(" ")[0] for line in lines]

    Grid("grid.yaml").submit()
    assert waits() == ["", "7_1", "7_2", "8_0", "8_1"]
    assert slurm.elements() == ["7_0", "7_1", "7_2", "8_0", "8_1", "9_0", "10_0", "11_0"]
    ids = {name: element.id for name, element in Submissions(tmp_path / "runs").elements({}).items()}
    assert [ids[str(cell.parent)] for cell in cells[4:]] == ["7_1", "7_1", "7_2", "8_0", "8_1"]
    Grid("grid.yaml").submit()
    assert "0 of 9 cells submitted; 8 queued, 1 finished" in capsys.readouterr().out

    slurm.empty()  # the parent of the two failed, so that Slurm dropped what waited for it; the others ended
    for cell in (cells[1], cells[3], cells[6]):
        finish(cell)
    cells[2].directory.mkdir()
    Status(State.FAILED.value, 1, host="node1", started_at=0.0, job="7_1").write(cells[2].directory)
    Grid("grid.yaml").submit()
    shown = capsys.readouterr().out
    assert "4 begin with the weights of cells that are neither finished nor in Slurm's queue" in shown
    assert "0 of 9 cells submitted" in shown
    (slurm.folder / "calls").unlink()
    Grid("grid.yaml").resume()
    assert waits() == ["", "7_0", "8_0", "8_1"]


def test_a_cell_is_found_by_its_stage_and_label(tmp_path: Path) -> None:
    cells = chain(tmp_path)
    label = "finetune pretrain.n_future=4 n_future=4 seed=1"
    assert find_cell(cells, label).label == label


WRONG = {
    "axes beside": ("seeds: [0, 1]\n", "seeds: [0, 1]\naxes: {a: [1]}\n", "grid.yaml:5: axes: belongs to a stage"),
    "typo": ("seeds: [0, 1]\n", "seed: [0, 1]\n", "grid.yaml:4: seed: unknown key"),
    "no name": ("name: finetune", "nam: finetune", "grid.yaml:9: stages: must be a mapping with a name"),
    "a section": ("name: finetune", "name: model", "stages.name: 'model' is no free name"),
    "twice": ("name: finetune", "name: pretrain", "stages.name: 'pretrain' is given twice"),
    "later": ("from: pretrain", "from: frozen", "grid.yaml:10: stages.from: 'frozen' is no earlier stage"),
    "own typo": ("    exclude: [n_future != 1", "    exclud: [n_future != 1", "unknown key; did you mean 'exclude'?"),
    "path": ("trainer.max_steps: 3,", "model.init.path: x,", "model.init.path: follows from the stage's `from`"),
    "name of an axis": ("pretrain.n_future]", "pretrain.n_futur]", "unknown name 'pretrain.n_futur'"),
    "value of no parent": ("[0.1]}\n    exclude", "[0.3]}\n    exclude", "no cell of stage 'pretrain' has any"),
    "seed": ("    from: finetune", "    from: finetune\n    seeds: [7]", "grid.yaml:18: seeds: stage 'finetune'"),
    "unknown key": ("{model.heads.n_future: 2,", "{model.heads.n_futur: 2,", "grid.yaml:18: overrides.model.heads"),
    "no stages": (CHAIN[CHAIN.index("stages:"):], "stages: []\n", "stages: must be a list of stages"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert CHAIN.count(old) == 1
    path = grid_file(tmp_path, CHAIN.replace(old, new), more="")
    with pytest.raises(InputError) as refused:
        load_cells(path, FakeResolver(), tmp_path / "runs")
    assert says in str(refused.value)


def test_the_schema_knows_chains(tmp_path: Path) -> None:
    assert not list(VALIDATOR.iter_errors(read_yaml(grid_file(tmp_path, CHAIN, more=""))[0]))
    for name in ("axes beside", "typo", "no name", "own typo", "no stages"):
        old, new, _ = WRONG[name]
        assert list(VALIDATOR.iter_errors(read_yaml(grid_file(tmp_path, CHAIN.replace(old, new), more=""))[0])), name
