"""A run that diverged fails and is a result all the same, the worst of its setting: in no form of a report is the mean
of the seeds that held shown for it. The failures are those that runs write."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from test_grid_commands import grid_in
from test_grid_fakes import (
    DONE,
    GRID,
    ONE,
    FakeHouse,
    cells_of,
    finish,
    grid_file,
    house,
    launch,
    load_grid,
    run_id,
    starts,
    states,
)
from test_grid_html_page import Page
from test_grid_ladder import LADDER, fill
from test_grid_report import LOSSES, value

from mtp_lightning.grid.report.comparison import Report, build_report
from mtp_lightning.grid.report.forms.figures import make_figure
from mtp_lightning.grid.report.forms.html_page import html_page
from mtp_lightning.grid.report.forms.notices import notices
from mtp_lightning.grid.report.forms.tables import csv_text, markdown, report_json
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.report.verdict import Outcome
from mtp_lightning.grid.run.process import Outcome as Ended
from mtp_lightning.grid.run.state import RUN_ID, Failure, State, Status
from mtp_lightning.grid.slurm.job import _Leader
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import At
from mtp_lightning.optimization.divergence import diverged_error

__all__ = ["house"]

LOSS, SECOND = "val/loss/head_1", "val/loss/head_2"


def diverge(cell: Cell) -> None:
    """Its files, as a run (`callbacks/heartbeat.py`) and its launcher leave them."""
    cell.directory.mkdir(parents=True, exist_ok=True)
    (cell.directory / "result.json").unlink(missing_ok=True)
    error = diverged_error(3, "its loss is not finite", str(cell.directory))
    Failure(type(error).__name__, str(error)).write(cell.directory)
    Status(State.FAILED.value, 1, "here", 0.0, ended_at=1.0, returncode=1).write(cell.directory)


def report_of(
    folder: Path, diverged: Collection[tuple[int, int]], losses: Mapping[tuple[int, int], float] = LOSSES
) -> Report:
    cells = cells_of(folder)
    for cell in cells:
        n, seed = value(cell)
        if (n, seed) in diverged:
            diverge(cell)
        else:
            finish(cell, loss_1=losses[n, seed], **({} if n == 1 else {"loss_2": 3.0, "speedup": 1.5}))
    return build_report(load_grid(folder / "grid.yaml"), cells)


def test_a_setting_is_not_better_for_the_seed_that_diverged(tmp_path: Path) -> None:
    """The one that held is the best of all, and the setting is not."""
    report = report_of(tmp_path, {(4, 1)}, {**LOSSES, (4, 0): 1.0})
    found = verdict(report)
    assert found.sentence == (
        "No difference beyond the spread over 2 seeds (0.2121): n_future=2 has the lowest val/loss/head_1, 2.0500, but "
        "only 0.0500 lower than the baseline n_future=1. Diverged: n_future=4 (1 seed)."
    )
    said = json.loads(json.dumps(found.json(), allow_nan=False))
    assert (said["diverged"], said["not_finite"], said["best_of"]) == ({"n_future=4": [1]}, ["n_future=4"], 2)
    assert (said["provisional"], said["missing"]) == (False, []), "it has ended"
    name = "n_future=4 seed=1 (at step 3: its loss is not finite)"
    assert notices(report) == [f"1 of 6 cells diverged, so their settings have no mean: {name}"]
    text = markdown(report)
    assert "| n_future=4, 2 seeds |" in text
    assert "| nan (1 of 2 diverged) (nan) |" in text
    assert f"n_future=4,4,{LOSS},,nan,,2,2,nan,,,,2," in csv_text(report)
    table = report_json(report)
    assert table["diverged"] == [name]
    assert table["groups"][2]["metrics"][LOSS]["mean"] is None
    texts = Page(html_page(report, None)).texts
    assert "3 settings, 2 seeds; 5 of 6 cells finished, 1 diverged" in texts
    assert texts[texts.index("seed 1") + 7 :][:3] == ["n_future=4", "1.0000", "diverged"]
    assert "1 of 6 cells diverged" in make_figure(report, {}).get_suptitle()


def test_it_has_what_its_setting_is_validated_on_and_nothing_else(tmp_path: Path) -> None:
    report = report_of(tmp_path, {(1, 1), (2, 1), (4, 0), (4, 1)})
    one, two, four = report.groups
    assert set(one.results[1]) == {LOSS}, "one head has no second, and plain decoding no speedup"
    assert set(two.results[1]) == {LOSS, SECOND, "decode/speedup"}
    assert set(four.results[1]) == {LOSS, "decode/speedup"}, "no seed says what else it has"
    assert all(math.isnan(found) for found in (*one.results[1].values(), *two.results[1].values()))


def test_a_baseline_that_diverged_is_compared_with_nothing(tmp_path: Path) -> None:
    found = verdict(report_of(tmp_path, {(1, 0), (2, 0), (2, 1)}))
    assert found.outcome is Outcome.ONE_FINITE
    assert found.sentence == (
        "n_future=4 has the only finite val/loss/head_1, 2.6000. Diverged: n_future=1 (1 seed), n_future=2 (2 seeds)."
    )


def test_where_all_diverged_that_is_the_verdict(tmp_path: Path) -> None:
    found = verdict(report_of(tmp_path, set(LOSSES)))
    assert found.sentence.startswith("No verdict: val/loss/head_1 is not a finite number in any setting. Diverged: n_")


def test_another_failure_is_still_missing(tmp_path: Path) -> None:
    report = report_of(tmp_path, ())
    lost = report.cells[-1]
    (lost.directory / "result.json").unlink()
    Status(State.FAILED.value, 1, "here", 0.0, reason="OSError: disk full").write(lost.directory)
    report = build_report(report.spec, report.cells)
    assert (len(report.missing), report.diverged, verdict(report).provisional) == (1, [], True)
    diverge(lost)
    Status(State.INTERRUPTED.value, 2, "here", 0.0, ended_at=2.0).write(lost.directory)
    assert len(build_report(report.spec, report.cells).missing) == 1, "it is tried again"


def test_it_diverged_at_a_budget_that_it_passed_too(tmp_path: Path) -> None:
    report = report_of(tmp_path, {(2, 1)})
    for cell in report.cells:
        (cell.directory / RUN_ID).write_text(run_id(cell.label))

    def history(_: str, metric: str) -> list[tuple[int, float]]:
        return [(1, 3.0), (2, 2.5), (3, 2.0)] if metric == LOSS else []

    at = build_report(report.spec, report.cells, None, history, At("step", 2.0))
    assert at.groups[0].by_seed(LOSS) == {0: 2.5, 1: 2.5}
    assert math.isnan(at.groups[1].by_seed(LOSS)[1])
    assert (at.missing, at.unfinished, len(at.diverged)) == ([], [], 1)


def test_an_arm_has_no_speedup_where_it_diverged_and_a_baseline_no_curve(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, LADDER)
    fill(cells)
    spec = load_grid(tmp_path / "grid.yaml")

    def cell(n: int, width: int, seed: int) -> Cell:
        wanted = {"model.heads.n_future": n, "model.width": width}
        return next(one for one in cells if one.seed == seed and wanted.items() <= one.values.items())

    diverge(cell(2, 64, 1))
    diverge(cell(2, 16, 0))
    diverge(cell(2, 16, 1))
    report = build_report(spec, cells)
    (ladder,) = report.ladders
    assert ladder.worths[0] is not None
    found = {size: one.refusal for size, one in zip(ladder.sizes, ladder.worths[0].speedups)}
    bad = "not finite: a seed of the arm diverged"
    assert found == {"width=8": None, "width=16": bad, "width=32": None, "width=64": bad, "width=128": None}
    assert ladder.order_to_baseline("n_future=2") is None
    assert f"- n_future=2 at width=64: no effective speedup, {bad}" in markdown(report)
    json.dumps(verdict(report).json(), allow_nan=False)
    make_figure(report, {})
    diverge(cell(1, 32, 0))
    diverge(cell(1, 32, 1))
    refusal = build_report(spec, cells).ladders[0].fit.refusal
    assert refusal == "not finite: the baseline diverged at width=32", "and not: its compute is unknown"


DIVERGES = """
progress(3)
write("failure.json", error="DivergedError", message="diverged at step 3: its loss is not finite. The", where="")
sys.exit(1)
"""


def test_run_says_it_and_is_not_well(tmp_path: Path, house: FakeHouse, capsys: pytest.CaptureFixture[str]) -> None:
    house.script = f"if n == 1 or seed:\n    {DONE}\nelse:\n    " + DIVERGES.strip().replace("\n", "\n    ")
    grid_file(tmp_path, GRID.replace("[1, 2, 4]", "[1, 2]") + "retry: 2\n")
    grid, out = grid_in(tmp_path), tmp_path / "status.json"
    assert grid.run(workers=4) == 1
    assert "n_future=2 seed=0: failed: DivergedError: diverged at step 3" in capsys.readouterr().err
    assert [starts(cell) for cell in grid.cells] == [1, 1, 1, 1], "`retry` is for accidents"
    said = json.loads((tmp_path / "runs/reports/head-count/verdict.json").read_text())
    assert (said["diverged"], said["provisional"]) == ({"n_future=2": [0]}, False)
    assert grid.status(json=str(out)) == 0
    row = json.loads(out.read_text())["cells"][2]
    assert (row["state"], row["reason"][:38]) == ("failed", "DivergedError: diverged at step 3: its")
    house.script = DONE
    assert grid_in(tmp_path).run(workers=1) == 0, "the next command tries it again"
    assert json.loads((tmp_path / "runs/reports/head-count/verdict.json").read_text())["diverged"] == {}


def test_what_diverged_is_not_tried_again_by_slurms_job_either(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, ONE + "retry: 2\n")
    tries = []

    class Leader(_Leader):
        def __init__(self) -> None:
            self.cell, self.warned_at, self.terminated = cell, None, False

        def _one(self) -> Ended:
            tries.append(len(tries))
            if len(tries) == 2:
                diverge(cell)
            return Ended(State.FAILED, "why")

    assert Leader()._attempts().state is State.FAILED
    assert tries == [0, 1]
    launched, _ = launch([cell], DIVERGES)
    assert (launched.outcomes[cell.signature].state, starts(cell), states([cell])) == (State.FAILED, 1, ["failed"])
