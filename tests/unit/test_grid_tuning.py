"""Fair tuning: each arm at its own best value, chosen on seeds that are not compared; run in rounds, and reported."""

import json
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grid_fakes import GRID, FakeHouse, cells_of, first_problem, grid_file, house, load_grid, run_id, states
from test_grid_html_page import Page
from test_grid_slurm_fakes import FakeSlurm, slurm

from mtp_lightning.errors import InputError
from mtp_lightning.files import write_json
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.report.comparison import Report, build_report
from mtp_lightning.grid.report.forms.html_page import html_page
from mtp_lightning.grid.report.forms.notices import notices
from mtp_lightning.grid.report.forms.tables import markdown, report_json
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.report.statistics import pooled_sd
from mtp_lightning.grid.report.tuning import Choice, Tuning, close_text, some, tuned, tuned_text
from mtp_lightning.grid.run.state import DIVERGED, RUN_ID, Failure, Result, State, Status
from mtp_lightning.grid.slurm import submit
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import At, GridSpec
from mtp_lightning.grid.spec.ladder_tune_gate import Tune

__all__ = ["house", "slurm"]

LOSS, LR, N = "val/loss/head_1", "optimizer.lr", "model.heads.n_future"
RATES = [0.1, 0.2, 0.3, 0.4]
TEXT = GRID.replace("axes:\n", f"axes:\n  {LR}: {RATES}\n").replace("[1, 2, 4]", "[1, 2]")
TEXT = TEXT.replace("compare: [val/loss/head_1, decode/speedup]", f"compare: [{LOSS}]")
TUNED = TEXT + f"tune: {{axis: {LR}, seeds: [100, 101]}}\n"
BEST = {1: 0.2, 2: 0.4}
"""n_future -> its best rate; of two heads at the edge."""


def made(folder: Path, text: str = TUNED) -> tuple[GridSpec, list[Cell]]:
    cells = cells_of(folder, text)
    return load_grid(folder / "grid.yaml"), cells


def end(cell: Cell, value: float) -> None:
    cell.directory.mkdir(parents=True, exist_ok=True)
    Result(step=5, metrics={LOSS: value}, data_fingerprint="d").write(cell.directory)


def fail(cell: Cell, error: str) -> None:
    cell.directory.mkdir(parents=True, exist_ok=True)
    Status(State.FAILED.value, 1, "here", 0.0).write(cell.directory)
    write_json(cell.directory / Failure.FILE, {"error": error, "message": "of it"})


def loss(cell: Cell) -> float:
    n = cell.values[N]
    return 2.0 - 0.25 * n + abs(cell.values[LR] - BEST[n]) + cell.seed / 1000


def end_all(cells: list[Cell], seeds: tuple[int, ...]) -> None:
    for cell in cells:
        if cell.seed in seeds:
            end(cell, loss(cell))


def labels(cells: Any) -> list[str]:
    return [cell.label for cell in cells]


def chosen(found: Tuning) -> dict[str, float | None]:
    return {choice.arm: choice.value for choice in found.choices}


def test_first_come_the_tuning_seeds_at_every_value_then_the_chosen_value_alone(tmp_path: Path) -> None:
    spec, cells = made(tmp_path)
    assert spec.tune == Tune(LR, (100, 101))
    assert len(cells) == 4 * 2 * (2 + 2)
    before = tuned(spec, cells)
    assert {cell.seed for cell in before.cells} == {100, 101}
    assert len(before.cells) == 4 * 2 * 2
    assert (list(before.compared), len(before.later)) == ([], 2 * 2)
    assert before.follows == "then 4 cells: 2 arms at the best lr"
    end_all(cells, (100, 101))
    after = tuned(spec, cells)
    assert chosen(after) == {"n_future=1": 0.2, "n_future=2": 0.4}
    assert [choice.at_edge for choice in after.choices] == [False, True]
    assert labels(after.compared) == [
        *("lr=0.2 n_future=1 seed=0", "lr=0.2 n_future=1 seed=1"),
        *("lr=0.4 n_future=2 seed=0", "lr=0.4 n_future=2 seed=1"),
    ]
    assert (after.later, after.follows) == ([], "")
    assert labels(tuned(spec, after.cells).cells) == labels(after.cells), "once more of what is left"


def test_an_arm_waits_for_all_its_tuning_cells_and_not_for_others(tmp_path: Path) -> None:
    spec, cells = made(tmp_path)
    end_all(cells, (100, 101))
    late = next(cell for cell in cells if cell.label == "lr=0.3 n_future=1 seed=101")
    (late.directory / "result.json").unlink()
    for error, waits in (("OSError", True), (DIVERGED, False)):
        fail(late, error)
        found = tuned(spec, cells)
        assert chosen(found) == {"n_future=1": None if waits else 0.2, "n_future=2": 0.4}
        assert list(found.choices[0].waits_for) == (["lr=0.3 n_future=1 seed=101 (failed)"] if waits else [])
        assert found.diverged == (set() if waits else {late.signature})
    assert found.choices[0].means[0.3] is None, "one seed that diverged is the value's result"


def test_a_value_whose_results_no_square_holds_is_as_one_that_diverged(tmp_path: Path) -> None:
    """Their sum may not be a number."""
    spec, cells = made(tmp_path)
    for cell in cells:
        end(cell, 1.7e308 if cell.values[LR] == 0.1 else loss(cell))
    found = tuned(spec, cells)
    assert chosen(found) == {"n_future=1": 0.2, "n_future=2": 0.4}
    assert [choice.means[0.1] for choice in found.choices] == [None, None]


def test_where_every_value_diverged_nothing_is_chosen_and_it_says_so(tmp_path: Path) -> None:
    spec, cells = made(tmp_path)
    for cell in cells:
        end(cell, float("nan") if cell.values[N] == 2 else loss(cell))
    found = tuned(spec, cells)
    assert chosen(found) == {"n_future=1": 0.2, "n_future=2": None}
    assert found.choices[1].waits_for == [f"no value of lr has a finite {LOSS}"]


@dataclass(frozen=True, repr=False)
class Ready:
    """Tuned, and nothing compared yet. Without a text of its own: Hypothesis would write out all cells."""

    spec: GridSpec
    cells: list[Cell]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    spec, cells = made(tmp_path_factory.mktemp("tuned"))
    end_all(cells, (100, 101))
    return Ready(spec, cells)


@settings(max_examples=6, deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), min_size=16, max_size=16))
def test_what_is_chosen_never_depends_on_the_compared_seeds(ready: Ready, values: list[float | None]) -> None:
    """Whatever they are, or whether they are there; and no tuning seed is ever compared."""
    spec, cells = ready.spec, ready.cells
    compared = [cell for cell in cells if cell.seed in spec.seeds]
    for cell, value in zip(compared, values, strict=True):
        if value is None:
            (cell.directory / "result.json").unlink(missing_ok=True)
        else:
            end(cell, value)
    found = tuned(spec, cells)
    assert chosen(found) == {"n_future=1": 0.2, "n_future=2": 0.4}
    assert {cell.seed for cell in found.compared} == {0, 1}
    assert all(set(group.results) <= {0, 1} for group in build_report(spec, cells).groups)


def report_of(folder: Path, text: str = TUNED) -> Report:
    spec, cells = made(folder, text)
    end_all(cells, (0, 1, 100, 101))
    return build_report(spec, cells)


def test_each_arm_is_compared_with_the_baseline_at_its_own_best(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    assert [group.label for group in report.groups] == ["lr=0.2 n_future=1", "lr=0.4 n_future=2"]
    one, two = report.groups
    assert one.is_baseline
    assert report.baseline_of(two) == one
    gap = report.difference(two, LOSS)
    assert gap is not None
    assert gap.mean == pytest.approx(-0.25)
    assert (report.missing, report.warnings, report.expected) == ([], [], 4)


def test_what_was_tuned_at_the_end_and_is_compared_before_is_a_warning(tmp_path: Path) -> None:
    spec, cells = made(tmp_path)
    end_all(cells, (0, 1, 100, 101))
    for cell in cells:
        (cell.directory / RUN_ID).write_text(run_id(cell.label))
    report = build_report(spec, cells, None, lambda run, metric: [(2, 1.5), (5, 1.0)], At("step", 2.0))
    warning = "lr was chosen by val/loss/head_1 at the end of training, and is compared at step 2"
    assert warning in report.warnings
    assert verdict(report).sentence.endswith("Mind the warnings.")


def test_of_many_arms_a_line_counts_those_with_nothing_to_say() -> None:
    arms = [Choice(f"n={n}", "lr", {0.1: 1.0, 0.2: 0.9, 0.4: 1.0}, 0.2, ()) for n in range(8)]
    edge, none = replace(arms[0], arm="at", value=0.4), replace(arms[0], arm="no", value=None)
    assert tuned_text(arms) == "; ".join(f"n={n}: lr=0.2" for n in range(8))
    text = "lr=0.2 of 8 arms; at: lr=0.4, at the edge of the axis; no: lr not chosen yet"
    assert tuned_text([edge, *arms, none]) == text


FLAT = {1: {0.1: 1.74, 0.2: 1.75, 0.3: 1.9, 0.4: 1.9}, 2: {0.1: 1.9, 0.2: 1.6, 0.3: 1.5, 0.4: 1.6}}
"""n_future -> rate -> loss: one head hardly minds which of two it has."""


def of_flat(folder: Path, seeds: str, spread: float) -> Report:
    spec, cells = made(folder, TUNED.replace("[100, 101]", seeds))
    for cell in cells:
        end(cell, FLAT[cell.values[N]][cell.values[LR]] + (spread if cell.seed in (1, 101) else 0.0))
    return build_report(spec, cells)


def test_a_choice_by_less_than_seeds_differ_is_flagged_the_baselines_first(tmp_path: Path) -> None:
    """As in 016: two seeds 0.02 apart have an sd of 0.01414, and the error on one seed is 0.02."""
    report = of_flat(tmp_path, "[100]", 0.02)
    one, two = report.choices
    assert [choice.seeds for choice in (one, two)] == [1, 1]
    assert (one.value, one.is_baseline, one.next_best) == (0.1, True, (0.2, pytest.approx(0.01)))
    assert (two.value, two.is_baseline, two.next_best) == (0.3, False, (0.2, pytest.approx(0.1)))
    assert one.error == two.error == pytest.approx(0.02)
    assert (one.is_close, two.is_close) == (True, False)
    said = "The lr of 1 of 2 arms was chosen by no more than its standard error (0.0200 on 1 seed): "
    said += "n_future=1, the baseline, (0.1 before 0.2 by 0.0100)."
    assert verdict(report).sentence.endswith(said)
    assert "| 1.7400, chosen, at the edge, perhaps by chance | 1.7500 |" in markdown(report)
    tried = verdict(report).json()["tuning"]
    assert [(choice["is_close"], choice["is_baseline"], choice["seeds"]) for choice in tried] == [
        (True, True, 1),
        (False, False, 1),
    ]
    assert tried[0]["margin"] == pytest.approx(0.01)
    assert tried[0]["error"] == pytest.approx(0.02)


@pytest.mark.parametrize(("seeds", "spread"), [("[100]", 0.0), ("[100]", 0.008), ("[100, 101]", 0.012)])
def test_a_choice_by_more_is_not(tmp_path: Path, seeds: str, spread: float) -> None:
    """0.012 apart, on one seed it would be."""
    report = of_flat(tmp_path, seeds, spread)
    assert not any(choice.is_close for choice in report.choices)
    assert "standard error" not in verdict(report).sentence


def test_of_many_such_choices_a_few_are_named() -> None:
    """The baseline's though it is the last."""
    arms = [Choice(f"n={n}", "lr", {0.1: 1.0, 0.2: 0.99}, 0.2, (), spread=0.02) for n in range(6)]
    arms[5] = replace(arms[5], is_baseline=True)
    text = close_text(arms, LOSS)
    assert text.startswith(
        "The lr of 6 arms was chosen by no more than its standard error (0.0283 on 1 seed): n=5, the"
    )
    assert text.endswith("n=0 (0.2 before 0.1 by 0.0100), n=1 (0.2 before 0.1 by 0.0100) and 3 more.")
    assert close_text([replace(arms[0], spread=None)], LOSS) == ""
    assert some(["a", "b", "c"], 3) == "a, b, c"
    tie = Choice("n=1", "lr", {0.1: 1.0, 0.2: 1.0}, 0.1, (), spread=0.0)
    assert tie.is_close, "a metric that does not tell the two apart"


def test_one_choice_in_six_by_the_standard_error_is_wrong() -> None:
    """What the flag rests on: of two values that truly are so far apart as the error, the worse seems better."""
    chance = random.Random(0)
    for seeds in (1, 2, 4):
        error = Choice("n=1", "lr", {}, None, (), seeds=seeds, spread=0.02).error
        assert error is not None
        wrong = sum(
            statistics.fmean(chance.gauss(error, 0.02) for _ in range(seeds))
            < statistics.fmean(chance.gauss(0.0, 0.02) for _ in range(seeds))
            for _ in range(4000)
        )
        assert 0.14 < wrong / 4000 < 0.18


def test_the_spread_that_settings_share_weighs_them_by_their_seeds() -> None:
    values = [{0: 1.0, 1: 2.0, 2: 3.0}, {0: 5.0, 1: 9.0}, {0: 7.0}, {0: 1.0, 1: float("nan")}, {}]
    assert pooled_sd(values) == pytest.approx(((2 * 1.0 + 8.0) / 3) ** 0.5)
    assert pooled_sd(values[2:]) is None


def test_the_verdict_flags_the_edge_and_every_form_has_the_choices(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    found = verdict(report)
    assert found.sentence.endswith(
        " Best at the edge of the tuned axis, and perhaps better beyond: n_future=2 (lr=0.4)."
    )
    first, second = found.json()["tuning"]
    assert (first["arm"], first["value"], first["at_edge"]) == ("n_future=1", 0.2, False)
    assert (second["arm"], second["value"], second["at_edge"]) == ("n_future=2", 0.4, True)
    assert [tried["value"] for tried in first["tried"]] == RATES
    assert report_json(report)["tuning"] == found.json()["tuning"]
    line = "tuned on other seeds: n_future=1: lr=0.2; n_future=2: lr=0.4, at the edge of the axis"
    assert line in notices(report)
    assert line[1:] in markdown(report)
    page = Page(html_page(report, None)).texts
    assert {"Tuned: lr", "lr=0.4", "1.8505, chosen", "1.6005, chosen, at the edge"} <= set(page)
    rows = (
        "| n_future=1 | 1.9505 | 1.8505, chosen | 1.9505 | 2.0505 |\n| n_future=2 | 1.9005 | 1.8005 | 1.7005 | 1.6005, "
    )
    assert f"lr=0.4 |\n| --- | ---: | ---: | ---: | ---: |\n{rows}" in markdown(report)


def test_what_is_not_chosen_yet_is_missing_and_not_guessed(tmp_path: Path) -> None:
    spec, cells = made(tmp_path)
    end_all(cells, (0, 1, 100))
    report = build_report(spec, cells)
    assert report.groups == []
    assert report.missing[0] == "n_future=1 seed=0 (its lr is not chosen yet)"
    assert len(report.missing) == report.expected == 4
    assert (
        verdict(report).sentence == f"No verdict: no finished cell has {LOSS}. Provisional: 4 of 4 cells are missing."
    )
    assert any(
        line.startswith("the choice waits for lr=0.1 n_future=1 seed=101 (missing), ") for line in notices(report)
    )


@pytest.mark.slow  # a hundred cells
def test_a_ladder_takes_each_size_of_each_arm_at_its_own_best(tmp_path: Path) -> None:
    text = TUNED.replace("axes:\n", "axes:\n  model.width: [8, 16, 32, 64]\n") + "ladder: {size: model.width}\n"
    spec, cells = made(tmp_path, text)
    for cell in cells:
        best = {8: 0.1, 16: 0.2, 32: 0.3, 64: 0.4}[cell.values["model.width"]]
        cost = 1e6 * cell.values["model.width"] ** 2
        value = 1.5 + cost**-0.1 / cell.values[N] + abs(cell.values[LR] - best) + cell.seed / 1e5
        cell.directory.mkdir(parents=True)
        metrics = {LOSS: value, "model/flops_per_token": cost}
        Result(step=5, metrics=metrics, tokens=1, data_fingerprint="d").write(cell.directory)
    report = build_report(spec, cells)
    (ladder,) = report.ladders
    assert ladder.sizes == ["width=8", "width=16", "width=32", "width=64"]
    assert [arm.name for arm in ladder.arms] == ["n_future=2"]
    assert [group.values[LR] for group in report.groups if group.is_baseline] == RATES


RUN = """
rate = float(text.split("lr: ")[1].split()[0])
progress(5)
if rate > 0.35:
    write("failure.json", error="DivergedError", message="diverged")
    sys.exit(1)
metrics = {"val/loss/head_1": abs(rate - n / 10) + seed / 1000}
write("result.json", state="finished", step=5, metrics=metrics, tokens=50, wall_seconds=0.1, data_fingerprint="d")
"""


@pytest.mark.slow
def test_run_goes_on_by_itself_and_a_rate_that_diverges_is_an_answer(
    tmp_path: Path, house: FakeHouse, capsys: pytest.CaptureFixture[str]
) -> None:
    house.script = RUN
    path = grid_file(tmp_path, TUNED)
    grid = Grid(str(path), runs=str(tmp_path / "runs"))
    assert grid.plan() == 0
    said = capsys.readouterr().out
    assert "16 cells: 16 missing; 16 to run\nthen 4 cells: 2 arms at the best lr; counted in the sums" in said
    assert "in all 10.0 k tokens" in said, "20 cells of 500"
    assert grid.run(workers=2) == 0
    verdict = json.loads((tmp_path / "runs/reports/head-count/verdict.json").read_text())
    assert [choice["value"] for choice in verdict["tuning"]] == [0.1, 0.2]
    ran = {cell.label for cell in cells_of(tmp_path, TUNED) if states([cell]) == ["finished"]}
    assert {label for label in ran if label.endswith(("=0", "=1"))} == {
        *("lr=0.1 n_future=1 seed=0", "lr=0.1 n_future=1 seed=1"),
        *("lr=0.2 n_future=2 seed=0", "lr=0.2 n_future=2 seed=1"),
    }
    capsys.readouterr()
    assert Grid(str(path), runs=str(tmp_path / "runs")).run(workers=2) == 0
    assert "cells are finished: nothing to run" in capsys.readouterr().err


@pytest.mark.slow  # it starts the programs of Slurm
def test_on_slurm_the_same_command_submits_the_second_part(
    slurm: FakeSlurm,
    tmp_path: Path,
    house: FakeHouse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submit, "checkout", lambda: None)
    _, cells = made(tmp_path)
    assert Grid("grid.yaml").submit() == 0
    assert "16 of 16 cells submitted\nthen 4 cells: 2 arms at the best lr; the same" in capsys.readouterr().out
    assert len(slurm.elements()) == 16
    slurm.empty()
    end_all(cells, (100, 101))
    gone = next(cell for cell in cells if cell.label == "lr=0.1 n_future=1 seed=100")
    (gone.directory / "result.json").unlink()
    fail(gone, DIVERGED)
    assert Grid("grid.yaml").resume() == 0
    assert "4 of 20 cells submitted" in capsys.readouterr().out, "and not what diverged"
    assert len(slurm.elements()) == 4


BAD = {
    "tune: optimizer.lr": "tune: must be a mapping, not text",
    "tune: {axis: optimizer.lr}": "tune: needs seeds",
    "tune: {axis: lr, seeds: [100]}": "tune.axis: 'lr' is not an axis; did you mean 'optimizer.lr'?",
    "tune: {axis: optimizer.lr, seed: [100]}": "tune.seed: unknown key; did you mean 'seeds'?",
    "tune: {axis: optimizer.lr, seeds: 100}": "tune.seeds: must be a list of whole numbers in 0 .. 4294967295, and",
    "tune: {axis: optimizer.lr, seeds: [true]}": "tune.seeds: must be a list of whole numbers",
    "tune: {axis: optimizer.lr, seeds: [-1]}": "tune.seeds: must be a list of whole numbers",
    "tune: {axis: optimizer.lr, seeds: [7, 7]}": "tune.seeds: a seed is given twice",
    "tune: {axis: optimizer.lr, seeds: [1, 7]}": "tune.seeds: 1 is compared too, and looks better than it is where",
    "tune: {axis: model.heads.n_future, seeds: [7]}": "tune.axis: the baseline fixes model.heads.n_future: leave it",
    "tune: {axis: model.heads.match, seeds: [7]}": "tune.axis: 'model.heads.match' is not an axis",
}


@pytest.mark.parametrize(("line", "message"), BAD.items(), ids=BAD)
def test_a_bad_section_names_file_line_and_key(tmp_path: Path, line: str, message: str) -> None:
    assert first_problem(tmp_path, TEXT + line + "\n").startswith(f"10: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"[{LOSS}]": f"[{{metric: {LOSS}, at: {{step: 3}}}}]"}, rf"tune: chooses by {LOSS} at the end of training"),
        (
            {f"[{LOSS}]": "[probe/some/drop]"},
            "tune: whether a lower or a higher probe/some/drop is better is not known",
        ),
        ({str(RATES): "[a, b]"}, "tune.axis: optimizer.lr needs two numbers or more"),
        ({"seeds: [0, 1]": "seeds: [0, 1]\ninclude: [{model.heads.n_future: 3}]"}, "include: gives no optimizer.lr"),
        (
            {"seeds: [0, 1]": "seeds: [0, 1]\nexclude: ['n_future == 1 and seed == 100']"},
            "exclude: leaves .* at some seeds",
        ),
        ({"seeds: [0, 1]": "seeds: [0, 1]\nablate: true"}, "ablate: does not go with tune, whose axis"),
        ({"seeds: [0, 1]": "seeds: [0, 1]\nexclude: ['lr == 0.2 and seed == 1']"}, "exclude: leaves optimizer.lr=0.2"),
        (
            {"seeds: [0, 1]": f"seeds: [0, 1]\nladder: {{size: {LR}}}"},
            "tune.axis: optimizer.lr is the size of the ladder",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, change: Mapping[str, str], message: str) -> None:
    text = TUNED
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(InputError, match=message):
        tuned(*made(tmp_path, text))


def test_a_chain_is_not_tuned(tmp_path: Path) -> None:
    text = "name: a\nconfigs: [base.yaml]\nstages: [{name: x, axes: {optimizer.lr: [0.1, 0.2]}}]\ntune: {axis: a}\n"
    with pytest.raises(InputError, match="tune: chains cannot be tuned"):
        load_grid(grid_file(tmp_path, text))
