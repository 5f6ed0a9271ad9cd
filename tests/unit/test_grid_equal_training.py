"""Comparison at equal step, tokens or FLOPs: what is read, what counts as reached, and what is said about it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from test_grid_fakes import GRID, FakeHouse, FakeTracking, cells_of, finish, load_grid, run_id

from mtp_lightning.errors import InputError
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.report.comparison import Report, build_report
from mtp_lightning.grid.report.equal_training import COMMON, at_text, parse_at
from mtp_lightning.grid.report.forms.notices import notices
from mtp_lightning.grid.report.forms.tables import csv_text, markdown, report_json
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.run.state import RUN_ID, State, Status
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import At

LOSS, SPEEDUP = "val/loss/head_1", "decode/speedup"
ONE_SEED = GRID.replace("[0, 1]", "[0]")

History = dict[str, Sequence[tuple[int, float]]]


def losses(end: int, every: int = 10) -> Sequence[tuple[int, float]]:
    """4 at the start, 0.01 less with every step."""
    return [(step, 4 - step / 100) for step in range(every, end + 1, every)]


def recorded(cell: Cell, end: int = 100, tokens: float = 8.0, flops: float = 50.0, size: float = 2.0) -> History:
    n = int(cell.values["model.heads.n_future"])
    return {
        LOSS: losses(end),
        "perf/tokens_seen": [(step, tokens * n * step) for step in (0, 1, end)],
        "model/flops_per_token": [(0, flops)],
        "data/bytes_per_token": [(0, size)],
    }


def report_at(
    folder: Path, at: At | None, histories: Mapping[str, History] = {}, states: Mapping[str, State] = {}
) -> Report:
    """Of one seed; `histories` and `states` by label stand for the full 100 steps of a finished cell."""
    text = ONE_SEED if not (folder / "grid.yaml").exists() else (folder / "grid.yaml").read_text()
    cells = cells_of(folder, text)
    runs: dict[str, History] = {}
    for cell in cells:
        cell.directory.mkdir(parents=True)
        (cell.directory / RUN_ID).write_text(run_id(cell.label))
        runs[run_id(cell.label)] = histories.get(cell.label, recorded(cell))
        if cell.label in states:
            Status(states[cell.label].value, 1, "here", 0.0).write(cell.directory)
        else:
            finish(cell, step=100, loss_1=3.0, speedup=1.5)
    spec = load_grid(folder / "grid.yaml")
    return build_report(spec, cells, None, lambda run, metric: runs[run].get(metric, []), at)


def means(report: Report, metric: str = LOSS) -> list[float | None]:
    found = [group.summary(metric) for group in report.groups]
    return [None if summary is None else summary.mean for summary in found]


def test_at_a_step_the_last_value_logged_by_then_is_taken(tmp_path: Path) -> None:
    report = report_at(tmp_path, At("step", 45.0))
    assert means(report) == pytest.approx([3.6] * 3)
    assert means(report, SPEEDUP) == [1.5] * 3, "without a history: the end"
    assert notices(report) == [
        f"without a history, so compared at the end: {SPEEDUP}",
        f"at step 45, as last logged before it, step 40, in n_future=1, n_future=2, n_future=4: {LOSS}",
    ]
    assert f"| {LOSS} at step 45 ↓ | 3.6000 |" in markdown(report)
    assert f"| {SPEEDUP} ↑ | 1.5000 |" in markdown(report)
    assert f"n_future=1,1,{LOSS},step=45,3.6," in csv_text(report)
    assert report_json(report)["at"] == {LOSS: {"unit": "step", "amount": 45.0}}
    assert f"{LOSS} at step 45" in verdict(report).sentence
    assert verdict(report).json()["at"] == {"unit": "step", "amount": 45.0}


def test_at_the_very_step_nothing_is_said(tmp_path: Path) -> None:
    report = report_at(tmp_path, At("step", 100.0))
    assert means(report) == [3.0] * 3
    assert notices(report) == [f"without a history, so compared at the end: {SPEEDUP}"]


def test_at_tokens_each_cell_is_taken_at_its_own_step(tmp_path: Path) -> None:
    """8, 16 and 32 tokens a step."""
    report = report_at(tmp_path, At("tokens", 640.0))
    assert means(report) == pytest.approx([3.2, 3.6, 3.8])
    assert {cell.label: report.equal_training.per_step["tokens"][cell.signature] for cell in report.cells} == {
        "n_future=1": 8.0,
        "n_future=2": 16.0,
        "n_future=4": 32.0,
    }


def test_at_bytes_a_longer_token_is_more_text(tmp_path: Path) -> None:
    """8, 16 and 32 tokens a step, of two bytes; the second setting's are of four."""
    longer = {
        LOSS: losses(100),
        "perf/tokens_seen": [(0, 0.0), (1, 16.0), (100, 1600.0)],
        "data/bytes_per_token": [(0, 4.0)],
    }
    report = report_at(tmp_path, At("bytes", 1280.0), {"n_future=2": longer})
    assert means(report) == pytest.approx([3.2, 3.8, 3.8])  # 80, 20 and 20 steps
    assert at_text(At("bytes", 1280.0)) == "1.28 k bytes"
    short = {name: points for name, points in longer.items() if not name.startswith("data/")}
    (tmp_path / "without").mkdir()
    without = report_at(tmp_path / "without", At("bytes", 1280.0), {"n_future=2": short})
    assert any("missing (no perf/tokens_seen or data/bytes_per_token) in n_future=2" in n for n in notices(without))


def test_at_seconds_each_cell_is_taken_at_its_own_pace(tmp_path: Path) -> None:
    """Half a second a step; the second setting's are of two seconds, by the median of what was logged."""
    paces = {"n_future=1": [0.5], "n_future=2": [9.0, 2.0, 1.9], "n_future=4": [0.5]}
    cells = {label: {LOSS: losses(100), "perf/step_seconds": list(enumerate(all_))} for label, all_ in paces.items()}
    report = report_at(tmp_path, At("seconds", 40.0), cells)
    assert means(report) == pytest.approx([3.2, 3.8, 3.2])  # 80, 20 and 80 steps
    assert at_text(parse_at("seconds=40")) == "40.0 seconds"
    (tmp_path / "without").mkdir()
    without = report_at(tmp_path / "without", At("seconds", 40.0), {**cells, "n_future=4": {LOSS: losses(100)}})
    assert any("missing (no perf/step_seconds) in n_future=4" in line for line in notices(without))


def test_at_flops_tokens_are_multiplied_by_what_one_costs(tmp_path: Path) -> None:
    """400, 800 and 1600 FLOPs a step: 55.5, 27.75 and 13.9 steps."""
    report = report_at(tmp_path, At("flops", 22200.0))
    assert means(report) == pytest.approx([3.5, 3.8, 3.9])
    assert [line.partition(" in ")[0] for line in notices(report)[1:]] == [
        f"at 22.2 k FLOPs, as last logged before it, step {step}," for step in (50, 20, 10)
    ]


def test_a_cell_that_has_not_come_so_far_is_named_and_not_guessed(tmp_path: Path) -> None:
    report = report_at(tmp_path, At("tokens", 1600.0))  # 200 steps of n_future=1
    assert means(report) == [None, 3.0, 3.5]
    assert f"at 1.60 k tokens, missing (step 100 of 200) in n_future=1: {LOSS}" in notices(report)
    assert "Without a value: n_future=1." in verdict(report).sentence


def test_whole_steps_count_a_budget_between_two_is_reached_by_the_lower(tmp_path: Path) -> None:
    report = report_at(tmp_path, At("tokens", 3215.0))  # 100.5 steps of n_future=4
    assert means(report)[2] == 3.0


def test_without_a_record_of_tokens_a_cell_is_missing(tmp_path: Path) -> None:
    report = report_at(tmp_path, At("flops", 22200.0), {"n_future=2": {LOSS: losses(100)}})
    assert means(report) == pytest.approx([3.5, None, 3.9])
    said = f"at 22.2 k FLOPs, missing (no perf/tokens_seen or model/flops_per_token) in n_future=2: {LOSS}"
    assert said in notices(report)


def test_a_running_cell_takes_part_once_it_has_come_so_far(tmp_path: Path) -> None:
    cells = {cell.label: cell for cell in cells_of(tmp_path, ONE_SEED)}
    under_way = {
        "n_future=2": recorded(cells["n_future=2"], 60),
        "n_future=4": recorded(cells["n_future=4"], 40),
        "n_future=1": recorded(cells["n_future=1"], 90),
    }
    states = {"n_future=2": State.INTERRUPTED, "n_future=4": State.INTERRUPTED, "n_future=1": State.FAILED}
    report = report_at(tmp_path, At("step", 55.0), under_way, states)
    assert means(report) == pytest.approx([None, 3.5, None]), "a failed cell takes no part, one at step 40 not yet"
    assert report.unfinished == verdict(report).json()["unfinished"] == ["n_future=2 (interrupted)"]
    assert report.missing == ["n_future=1 (failed)", "n_future=4 (interrupted)"]
    assert f"at step 55, missing (step 40 of 55) in n_future=4: {LOSS}" in notices(report)
    assert verdict(report).sentence.endswith("Provisional: 2 of 3 cells are missing and 1 of 3 cells are not finished.")


def test_a_cell_that_is_not_finished_makes_the_verdict_provisional(tmp_path: Path) -> None:
    report = report_at(tmp_path, At("step", 55.0), states={"n_future=4": State.INTERRUPTED})
    assert report.missing == []
    assert verdict(report).json()["provisional"] is True
    assert verdict(report).sentence.endswith(" Provisional: 1 of 3 cells are not finished.")


def test_common_is_the_last_step_that_all_have(tmp_path: Path) -> None:
    cells = {cell.label: cell for cell in cells_of(tmp_path, ONE_SEED)}
    states = {"n_future=4": State.INTERRUPTED, "n_future=2": State.FAILED}
    histories = {"n_future=4": recorded(cells["n_future=4"], 60), "n_future=2": recorded(cells["n_future=2"], 20)}
    report = report_at(tmp_path, COMMON, histories, states)
    assert report.equal_training.at == {LOSS: At("step", 60.0)}
    assert means(report) == pytest.approx([3.4, None, 3.4])
    assert "compared at step 60, the last that all cells with a history have, where n_future=4 is" in notices(report)


def test_common_of_nothing_is_no_comparison(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, ONE_SEED)
    report = build_report(load_grid(tmp_path / "grid.yaml"), cells, None, lambda run, metric: [], COMMON)
    assert verdict(report).sentence.startswith("No verdict: no finished cell has")


def test_a_setting_without_the_metric_is_a_dash_and_no_missing_cell(tmp_path: Path) -> None:
    """Head 2 of a model with one."""
    cells = {cell.label: cell for cell in cells_of(tmp_path, ONE_SEED)}
    two = {**recorded(cells["n_future=2"]), "val/loss/head_2": losses(100)}
    grid = (tmp_path / "grid.yaml").read_text().replace(SPEEDUP, "val/loss/head_2")
    (tmp_path / "grid.yaml").write_text(grid)
    report = report_at(tmp_path, At("step", 50.0), {"n_future=2": two})
    assert means(report, "val/loss/head_2") == [None, 3.5, None]
    assert notices(report) == []


def test_runs_of_unlike_length_compare_at_one_step(tmp_path: Path) -> None:
    """The warning about their lengths is about their ends."""
    cells = cells_of(tmp_path, ONE_SEED.replace(f", {SPEEDUP}", ""))
    for cell, step in zip(cells, (100, 100, 80)):
        finish(cell, step=step, loss_1=1.0)
        (cell.directory / RUN_ID).write_text(f"{step:032}")
    spec = load_grid(tmp_path / "grid.yaml")

    def read(run: str, metric: str) -> Sequence[tuple[int, float]]:
        return losses(int(run)) if metric == LOSS else []

    assert len(build_report(spec, cells).warnings) == 1
    assert build_report(spec, cells, None, read, At("step", 80.0)).warnings == []


def test_what_the_command_line_takes() -> None:
    given = {"step=1000": At("step", 1000.0), "tokens=1e6": At("tokens", 1e6), "common": COMMON}
    assert {text: parse_at(text) for text in given} == given
    assert [at_text(At(*at)) for at in (("step", 1234567.0), ("tokens", 1e6), ("flops", 2.5e12))] == [
        "step 1234567",
        "1.00 M tokens",
        "2.50 T FLOPs",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokns=5", r"at: 'tokns=5' is no budget; did you mean 'tokens'\?; give step=NUMBER"),
        ("1000", "at: '1000' is no budget"),
        ("step", "at: 'step' is no budget"),
        ("step=soon", "at: 'soon' is not an amount of step above zero"),
        ("flops=0", "above zero"),
        ("flops=nan", "above zero"),
    ],
)
def test_what_it_does_not(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_at(text)


class Curves(FakeTracking):
    def history(self, run_id: str, key: str) -> Sequence[tuple[int, float]]:
        return losses(5, 1) if key == LOSS else []


def test_the_command_writes_beside_the_report_of_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeHouse(monkeypatch)
    Curves(monkeypatch)
    for cell in cells_of(tmp_path):
        finish(cell, loss_1=1.0)
        (cell.directory / RUN_ID).write_text(run_id(cell.label))
    runs = tmp_path / "runs"
    grid = Grid(str(tmp_path / "grid.yaml"), runs=str(runs))
    assert grid.report(at="step=3") == 0
    assert "at step 3" in capsys.readouterr().out
    assert f"{LOSS} at step 3" in (runs / "reports/head-count-step-3/report.md").read_text()
    assert grid.report() == 0
    assert "at step 3" not in (runs / "reports/head-count/report.md").read_text()
    with pytest.raises(InputError, match="at: 'now' is no budget"):
        grid.report(at="now")
