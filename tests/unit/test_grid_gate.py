"""Gates: cells wait at one step, settings too far from the best end there, and are reported so and never averaged."""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from test_grid_fakes import (
    GRID,
    FakeHouse,
    cells_of,
    first_problem,
    grid_file,
    house,
    load_grid,
    run_id,
    starts,
    states,
)
from test_grid_html_page import Page
from test_grid_slurm_fakes import FakeSlurm, slurm

from mtp_lightning.config.cell import cell_config
from mtp_lightning.errors import InputError, UnavailableError
from mtp_lightning.files import write_json
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.report.comparison import build_report
from mtp_lightning.grid.report.forms.html_page import html_page
from mtp_lightning.grid.report.forms.notices import notices
from mtp_lightning.grid.report.forms.tables import markdown, report_json
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.run import gate
from mtp_lightning.grid.run.gate import Gating, gated
from mtp_lightning.grid.run.state import DIVERGED, AtGate, Failure, Progress, Result, State, Status
from mtp_lightning.grid.slurm import submit
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.ladder_tune_gate import Gate

__all__ = ["house", "slurm"]

LOSS, N = "val/loss/head_1", "model.heads.n_future"
SAVES = "trainer.callbacks: [{class_path: callbacks.checkpointing.PeriodicCheckpoint}]"
TEXT = GRID.replace("max_steps: 5}", f"max_steps: 5, {SAVES}}}").replace(f"[{LOSS}, decode/speedup]", f"[{LOSS}]")
GATED = TEXT + "gate: {at: step=3, keep: within 0.1 of the best}\n"
VALUES = {1: 2.5, 2: 2.0, 4: 2.3}
"""n_future -> loss at the gate. The baseline is the worst, and is not stopped."""


def made(folder: Path, text: str = GATED) -> tuple[GridSpec, list[Cell]]:
    cells = cells_of(folder, text)
    return load_grid(folder / "grid.yaml"), cells


def pause(cell: Cell, value: float | None, step: int = 3) -> None:
    cell.directory.mkdir(parents=True, exist_ok=True)
    AtGate(step, {} if value is None else {LOSS: value}).write(cell.directory)
    Status(State.AT_GATE.value, 1, "here", 0.0, ended_at=1.0).write(cell.directory)


def pause_all(cells: list[Cell], values: Mapping[int, float] = VALUES) -> None:
    for cell in cells:
        pause(cell, values[cell.values[N]] + (0.04 if cell.seed else -0.04))


def stopped(found: Gating) -> list[str]:
    return [one.label for one in found.judged if one.is_stopped]


def runs(found: Gating) -> list[str]:
    return [cell.label for cell in found.cells if found.may_run(cell)]


def test_all_wait_for_the_last_then_those_far_from_the_best_are_stopped(tmp_path: Path) -> None:
    spec, cells = made(tmp_path)
    assert spec.gate == Gate(3, 0.1)
    before = gated(spec, cells)
    assert {cell.pause_at for cell in before.cells} == {3}
    assert len(runs(before)) == 6
    pause_all(cells[:5])
    waiting = gated(spec, cells)
    assert runs(waiting) == [cells[5].label], "what is at the gate waits"
    assert waiting.waits_for == [f"{cells[5].label} (missing)"]
    assert (waiting.judged, stopped(waiting)) == ([], [])
    assert (
        waiting.follows
        == f"then the gate: settings whose {LOSS} is within 0.1 of the best at step 3 go on to their end"
    )
    pause_all(cells)
    after = gated(spec, cells)
    assert [cell.pause_at for cell in after.cells] == [None] * 6
    assert [one.distance for one in after.judged] == pytest.approx([0.5, 0.0, 0.3])
    assert stopped(after) == ["n_future=4"], "not the baseline, whatever it is"
    assert runs(after) == [cell.label for cell in cells[:4]]
    assert after.follows == ""
    assert gated(spec, after.cells) == after, "once more of its own answer"


@pytest.mark.parametrize(("worse", "ends"), [(0.09, False), (0.11, True)])
def test_a_setting_is_judged_by_the_mean_of_its_seeds_and_with_all_of_them(
    tmp_path: Path, worse: float, ends: bool
) -> None:
    spec, cells = made(tmp_path)
    pause_all(cells, {1: 2.0, 2: 2.0, 4: 2.0 + worse})
    found = gated(spec, cells)
    assert stopped(found) == (["n_future=4"] if ends else [])
    assert {found.may_run(cell) for cell in cells if cell.values[N] == 4} == {not ends}


def test_what_has_a_result_diverged_or_has_no_value(tmp_path: Path) -> None:
    spec, cells = made(tmp_path, GATED.replace("[1, 2, 4]", "[1, 2, 3, 4, 5]"))
    pause_all(cells, dict.fromkeys((1, 2, 3, 4, 5), 2.0))
    by_n = {n: [cell for cell in cells if cell.values[N] == n] for n in (1, 2, 3, 4, 5)}
    (by_n[2][0].directory / AtGate.FILE).unlink()  # no process ever waited there
    Status(State.FAILED.value, 1, "here", 0.0).write(by_n[2][0].directory)
    for cell in by_n[3]:  # hopeless and finished all the same, in another grid
        pause(cell, 9.0)
        Result(step=5, metrics={LOSS: 8.0}, data_fingerprint="d").write(cell.directory)
    pause(by_n[4][1], None)
    pause(by_n[5][1], float("nan"))
    write_json(by_n[2][0].directory / Failure.FILE, {"error": "OSError", "message": "full"})
    assert gated(spec, cells).waits_for == [f"{by_n[2][0].label} (failed)"], "an accident is waited for"
    write_json(by_n[2][0].directory / Failure.FILE, {"error": DIVERGED, "message": "nan"})
    found = gated(spec, cells)
    assert stopped(found) == ["n_future=2", "n_future=5"], "a seed that diverged is the setting's result"
    report = build_report(spec, cells)
    assert f"without {LOSS} at step 3, so let through the gate: n_future=4" in notices(report)
    assert [group.label for group in report.groups if group.results] == ["n_future=3"]
    assert report_json(report)["gate"]["judged"][1]["value"] is None, "JSON has no infinity"
    json.dumps(verdict(report).json(), allow_nan=False)
    for cell in by_n[5]:
        pause(cell, 1.7e308)
    assert stopped(gated(spec, cells)) == ["n_future=2", "n_future=5"], "the sum of two may not be a number"


def test_where_more_is_better_the_least_are_stopped(tmp_path: Path) -> None:
    spec, cells = made(tmp_path, GATED.replace(f"[{LOSS}]", f"[{{metric: {LOSS}, better: higher}}]"))
    pause_all(cells)
    assert stopped(gated(spec, cells)) == ["n_future=2", "n_future=4"]


def test_sizes_of_a_ladder_are_judged_each_among_its_own(tmp_path: Path) -> None:
    text = GATED.replace("axes:\n", "axes:\n  model.width: [8, 16, 32, 64]\n") + "ladder: {size: model.width}\n"
    spec, cells = made(tmp_path, text)
    for cell in cells:
        pause(cell, 100 / cell.values["model.width"] + 0.2 * (cell.values[N] == 4))
    found = gated(spec, cells)
    assert stopped(found) == [f"width={width} n_future=4" for width in (8, 16, 32, 64)]
    assert {one.size for one in found.judged} == {f"width={width}" for width in (8, 16, 32, 64)}
    (cells[0].directory / AtGate.FILE).unlink()
    assert len(gated(spec, cells).judged) == 9, "the other sizes do not wait for it"
    assert len(build_report(spec, cells).groups) == 4 * 3 - 3


def test_a_cell_that_passed_without_waiting_is_judged_by_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, cells = made(tmp_path)
    pause_all(cells)
    old = cells[2]
    (old.directory / AtGate.FILE).unlink()
    Progress(step=4, max_steps=5, phase="stopped", updated_at=1.0).write(old.directory)
    (old.directory / "checkpoints").mkdir()
    (old.directory / "checkpoints" / "step-00000004.ckpt").touch()
    (old.directory / "mlflow_run_id").write_text(run_id("old"))
    points = [(1, 7.0), (3, 1.5), (4, 1.0)]
    monkeypatch.setattr(gate.tracking, "history", lambda uri, run, keys: {LOSS: points})
    assert gated(spec, cells).judged[1].value == pytest.approx((1.5 + 2.04) / 2)

    def away(*_: Any) -> Any:
        raise OSError("away")

    monkeypatch.setattr(gate.tracking, "history", away)
    with pytest.raises(UnavailableError, match=r"n_future=2 seed=0: its val/loss/head_1 at step 3, .*OSError: away"):
        gated(spec, cells)


def test_every_form_of_the_report_names_what_was_stopped_and_averages_none_of_it(tmp_path: Path) -> None:
    spec, cells = made(tmp_path)
    pause_all(cells)
    for cell in cells[:4]:
        Result(step=5, metrics={LOSS: 1.0 + cell.seed / 100}, data_fingerprint="d").write(cell.directory)
    Result(step=5, metrics={LOSS: 0.1}, data_fingerprint="d").write(cells[5].directory)  # one seed ran on elsewhere
    report = build_report(spec, cells)
    assert [group.label for group in report.groups] == ["n_future=1", "n_future=2"]
    assert (report.expected, report.missing) == (4, [])
    found = verdict(report)
    assert found.sentence.endswith(
        " Stopped by the gate, and not compared: n_future=4 (0.3000 from the best at step 3)."
    )
    assert not found.provisional
    assert "stopped by the gate, and not compared: n_future=4 (0.3000 from the best at step 3)" in notices(report)
    told = found.json()["gate"]
    assert told == report_json(report)["gate"]
    assert (told["at"], told["within"]) == ({"unit": "step", "amount": 3}, 0.1)
    assert [(one["setting"], one["stopped"]) for one in told["judged"]] == [
        *(("n_future=1", False), ("n_future=2", False), ("n_future=4", True)),
    ]
    page = Page(html_page(report, None)).texts
    assert {"The gate at step 3", "stopped", "went on", "0.3000"} <= set(page)
    assert "\n| n_future=4 | 2.3000 | 0.3000 | stopped |\n" in markdown(report)
    plain = build_report(replace(spec, gate=None), cells)
    assert (verdict(plain).json()["gate"], len(plain.groups)) == (None, 3)


RUN = """
stops = "pause_at: 3" in text
if stops and not (cell / "gate.json").exists():
    progress(3)
    write("gate.json", step=3, metrics={"val/loss/head_1": 2 + n / 10 + seed / 100})
    sys.exit(75)
progress(5)
finish()
"""


@pytest.mark.slow
def test_run_goes_on_from_the_gate_with_those_that_pass(
    tmp_path: Path, house: FakeHouse, capsys: pytest.CaptureFixture[str]
) -> None:
    house.script = RUN
    path = grid_file(tmp_path, GATED.replace("within 0.1 of", "within 0.15 of"))
    plan = tmp_path / "plan.json"
    assert Grid(str(path), runs=str(tmp_path / "runs")).plan() == 0
    said = capsys.readouterr().out
    assert "6 cells: 6 missing; 6 to run\nthen the gate: settings whose" in said
    assert Grid(str(path), runs=str(tmp_path / "runs")).run(workers=2) == 0
    cells = cells_of(tmp_path, path.read_text())
    assert [starts(cell) for cell in cells] == [2, 2, 2, 2, 1, 1]
    assert states(cells) == ["finished"] * 4 + ["at the gate"] * 2
    found = json.loads((tmp_path / "runs/reports/head-count/verdict.json").read_text())
    assert [one["stopped"] for one in found["gate"]["judged"]] == [False, False, True]
    capsys.readouterr()
    assert Grid(str(path), runs=str(tmp_path / "runs")).run(workers=2) == 0
    assert "all 4 cells are finished, 2 stopped by the gate: nothing to run" in capsys.readouterr().err
    assert Grid(str(path), runs=str(tmp_path / "runs")).status(json=str(plan)) == 0
    assert "6 cells: 4 finished, 2 stopped" in capsys.readouterr().out
    last = json.loads(plan.read_text())["cells"][5]
    assert (last["state"], last["reason"]) == ("stopped", "0.3000 from the best at step 3")
    assert Grid(str(path), runs=str(tmp_path / "runs")).plan() == 0
    assert "0 to run" in capsys.readouterr().out
    path.write_text(TEXT)
    assert Grid(str(path), runs=str(tmp_path / "runs")).run(workers=2) == 0, "without the gate they go on"
    assert states(cells) == ["finished"] * 6


@pytest.mark.slow
def test_a_launcher_leaves_alone_what_another_brought_to_the_gate(tmp_path: Path, house: FakeHouse) -> None:
    from test_grid_fakes import launch

    spec, cells = made(tmp_path)
    pause(cells[0], 2.0)
    launched, _ = launch(gated(spec, cells).cells[:1], RUN)
    assert starts(cells[0]) == 1, "it has passed: this attempt goes to its end"
    (cells[0].directory / "result.json").unlink()
    launched, _ = launch([replace(cells[0], pause_at=3)], RUN)
    assert launched.outcomes[cells[0].signature].state is State.AT_GATE
    assert starts(cells[0]) == 1


@pytest.mark.slow  # it starts the programs of Slurm
def test_on_slurm_the_same_command_submits_what_passed(
    slurm: FakeSlurm,
    tmp_path: Path,
    house: FakeHouse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submit, "checkout", lambda: None)
    _, cells = made(tmp_path)
    assert Grid("grid.yaml").submit() == 0
    assert "6 of 6 cells submitted\nthen the gate: settings" in capsys.readouterr().out
    slurm.empty()
    pause_all(cells[:5])
    assert Grid("grid.yaml").submit() == 0
    assert "1 of 6 cells submitted; 5 at the gate" in capsys.readouterr().out
    slurm.empty()
    pause_all(cells)
    assert Grid("grid.yaml").resume() == 0
    assert "4 of 6 cells submitted; 2 stopped" in capsys.readouterr().out
    assert len(slurm.elements()) == 4


CURVES = json.loads((Path(__file__).parent / "recorded_curves.json").read_text())
SMALL = "optimizer.lr: [0.0005, 0.002, 0.008]\n  model.heads.n_future: [1, 2, 4]"


def test_on_recorded_curves_the_later_best_is_stopped_no_more_often_than_the_manual_says(tmp_path: Path) -> None:
    """In comparisons of all nine settings, of those of one n, and of those of one rate, with either seed and with both.
    Curves of high rates, which begin well, cross those of low ones."""
    text = GATED.replace("model.heads.n_future: [1, 2, 4]", SMALL).replace("baseline: {model.heads.n_future: 1}\n", "")
    spec, cells = made(tmp_path, text.replace("max_steps: 5", "max_steps: 160"))
    assert spec.gate is not None
    curve_of = {(run["n_future"], run["lr"], run["seed"]): run["val"] for run in CURVES["runs"]}
    curves = {cell.signature: curve_of[cell.values[N], cell.values["optimizer.lr"], cell.seed] for cell in cells}
    asked = [lambda values: True]
    asked += [lambda values, n=n: values[N] == n for n in (1, 2, 4)]  # type: ignore[misc]
    asked += [lambda values, lr=lr: values["optimizer.lr"] == lr for lr in (0.0005, 0.002, 0.008)]  # type: ignore[misc]
    found = {}
    for step in (40, 80):
        for cell in cells:
            pause(cell, curves[cell.signature][CURVES["steps"].index(step)], step)
        for within in (0.1, 0.3):
            wrongly = ended = grids = 0
            for wanted, seeds in product(asked, ((0,), (1,), (0, 1))):
                mine = [cell for cell in cells if wanted(cell.values) and cell.seed in seeds]
                groups = {cell.group: [curves[c.signature][-1] for c in mine if c.group == cell.group] for cell in mine}
                best = min(groups, key=lambda group: sum(groups[group]))
                judged = gated(replace(spec, gate=Gate(step, within)), mine)
                wrongly, grids = wrongly + (best in judged.stopped), grids + 1
                ended += len(judged.stopped)
            found[step, within] = (wrongly, grids, round(ended / (3 * (9 + 6 * 3)), 2))
    assert found == {
        (40, 0.1): (2, 21, 0.49),
        (40, 0.3): (0, 21, 0.22),
        (80, 0.1): (0, 21, 0.42),
        (80, 0.3): (0, 21, 0.22),
    }
    manual = (Path(gate.__file__).parents[1] / "README.md").read_text()
    assert "the later best was stopped in 2 of 21 comparisons at a quarter of the steps within 0.1" in manual


def test_a_cell_is_told_where_to_pause_and_is_the_same_cell(tmp_path: Path) -> None:
    _, cells = made(tmp_path)
    assert [cell.signature for cell in cells] == [cell.signature for cell in cells_of(tmp_path, TEXT)]

    def told(pause_at: int | None) -> Any:
        named = {"run_name": "r", "experiment": "e", "tags": {}}
        config = cell_config(cells[0].config, cells[0].directory, **named, pause_at=pause_at)  # type: ignore[arg-type]
        return config["trainer"]["callbacks"][0].get("init_args")

    assert (told(3), told(None)) == ({"pause_at": 3}, None)


BAD = {
    "gate: step=3": "gate: must be a mapping, not text",
    "gate: {at: step=3}": "gate: needs keep",
    "gate: {at: 3, keep: within 0.1 of the best}": "gate.at: must be a step such as step=500, not 3",
    "gate: {at: step=0, keep: within 0.1 of the best}": "gate.at: must be a step such as step=500, not 'step=0'",
    "gate: {at: tokens=3, keep: within 0.1 of the best}": "gate.at: must be a step such as step=500",
    "gate: {at: step=3, keep: 0.1}": "gate.keep: must be a distance above zero, such as: within 0.1 of the best; not",
    "gate: {at: step=3, keep: within nan of the best}": "gate.keep: must be a distance above zero",
    "gate: {at: step=3, keep: within x of the best}": "gate.keep: must be a distance above zero",
    "gate: {at: step=3, keep: within 0 of the best}": "gate.keep: must be a distance above zero",
    "gate: {at: step=3, keeps: within 0.1 of the best}": "gate.keeps: unknown key; did you mean 'keep'?",
}


@pytest.mark.parametrize(("line", "message"), BAD.items(), ids=BAD)
def test_a_bad_section_names_file_line_and_key(tmp_path: Path, line: str, message: str) -> None:
    assert first_problem(tmp_path, TEXT + line + "\n").startswith(f"9: {message}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("step=3", "step=5", r"gate.at: step 5 is not before the end of n_future=1, at step 5: trainer.max_steps"),
        (SAVES, "trainer.callbacks: []", r"gate.at: n_future=1 saves nothing to go on from: trainer.callbacks has no"),
        (f"[{LOSS}]", "[probe/some/drop]", "gate: whether a lower or a higher probe/some/drop is better is not known"),
        ("seeds:", f"tune: {{axis: {N}, seeds: [9]}}\nseeds:", "gate: does not go with tune"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GATED
    with pytest.raises(InputError, match=message):
        gated(*made(tmp_path, GATED.replace(old, new, 1)))


def test_a_chain_has_no_gate(tmp_path: Path) -> None:
    text = "name: a\nconfigs: [base.yaml]\nstages: [{name: x, axes: {optimizer.lr: [0.1, 0.2]}}]\ngate: {at: step=3}\n"
    with pytest.raises(InputError, match="gate: chains have no gate"):
        load_grid(grid_file(tmp_path, text))
