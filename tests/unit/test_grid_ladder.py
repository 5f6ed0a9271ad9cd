"""A ladder from the grid file to every form of the report."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_grid_fakes import GRID, FakeResolver, cells_of, grid_file, load_grid, run_id
from test_grid_html_page import PNG, Page

from mtp_lightning.errors import InputError
from mtp_lightning.grid.report.comparison import Report, build_report
from mtp_lightning.grid.report.forms.figures import make_figure
from mtp_lightning.grid.report.forms.html_page import html_page
from mtp_lightning.grid.report.forms.mlflow_page import note
from mtp_lightning.grid.report.forms.tables import markdown, report_json
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.report.ladder.of_grid import find_ladders
from mtp_lightning.grid.report.ladder.tables import ladder_tables
from mtp_lightning.grid.report.verdict import Outcome
from mtp_lightning.grid.run.state import RUN_ID, Result
from mtp_lightning.grid.spec.cells import Cell, load_cells
from mtp_lightning.grid.spec.grid_spec import At
from mtp_lightning.grid.spec.ladder_tune_gate import Ladder

WIDTHS = [8, 16, 32, 64, 128]
TEXT = GRID.replace("axes:\n", f"axes:\n  model.width: {WIDTHS}\n").replace("[1, 2, 4]", "[1, 2]")
TEXT = TEXT.replace("compare: [val/loss/head_1, decode/speedup]", "compare: [val/loss/head_1]")
LADDER = TEXT + "ladder: {size: model.width}\n"
PER_TOKEN = 1e6
TOKENS = 1_000


def loss(compute: float) -> float:
    return 1.5 + (compute / 1e10) ** -0.3


def compute_of(cell: Cell) -> float:
    return PER_TOKEN * TOKENS * float(cell.values["model.width"]) ** 2


def fill(cells: list[Cell], speedup: float = 1.3, without: tuple[tuple[int, int], ...] = (), bend: float = 0.0) -> None:
    """Two heads are worth `speedup`; a seed moves all losses alike, and each cell a little."""
    for index, cell in enumerate(cells):
        width, n = cell.values["model.width"], cell.values["model.heads.n_future"]
        if (width, n) in without:
            continue
        value = loss(compute_of(cell) * (speedup if n == 2 else 1.0)) + 1e-3 * cell.seed + 1e-4 * math.sin(index)
        value += bend if width in (32, 64) else 0.0
        cell.directory.mkdir(parents=True, exist_ok=True)
        metrics = {"val/loss/head_1": value, "model/flops_per_token": compute_of(cell) / TOKENS}
        Result(step=5, metrics=metrics, tokens=TOKENS, data_fingerprint="d").write(cell.directory)


def report_of(folder: Path, text: str = LADDER, **more: float) -> Report:
    cells = cells_of(folder, text)
    fill(cells, **more)
    return build_report(load_grid(folder / "grid.yaml"), cells)


def test_arms_sizes_and_speedups_come_out_of_the_grids_cells(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    (ladder,) = report.ladders
    assert ladder.sizes == [f"width={width}" for width in WIDTHS]
    assert (ladder.baseline.name, [arm.name for arm in ladder.arms]) == ("n_future=1", ["n_future=2"])
    assert ladder.baseline.compute.tolist() == [PER_TOKEN * TOKENS * width**2 for width in WIDTHS]
    assert ladder.fit.law is not None
    assert float(ladder.fit.law.exponent) == pytest.approx(0.3, abs=0.01)
    (worth,) = ladder.worths
    assert worth is not None
    for one in worth.speedups:
        assert one.estimate is not None
        assert one.estimate.value == pytest.approx(1.3, abs=0.02)
        assert one.estimate.low < 1.3 < one.estimate.high
    order = ladder.order_to_baseline("n_future=2")
    assert order is not None
    assert order.held == 4


def test_every_form_of_the_report_has_it(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    found = verdict(report)
    assert found.sentence.startswith("width=128 n_future=2 has the lowest val/loss/head_1")
    assert "Effective speedup of n_future=2 over n_future=1 at width=128: 1.3" in found.sentence
    assert "(90% intervals); their order at width=128 holds at the next size with probability" in found.sentence
    assert "with probability > 0.99, by 5 sizes" in found.sentence
    assert "by 5 sizes, from one to the next of which it held 4 of 4 times." in found.sentence
    assert "Mind the warnings" not in found.sentence
    text = markdown(report)
    assert "## What the arms are worth\n\n| arm | width=8 | width=16 |" in text
    assert "- n_future=1: loss = 1.5" in text
    assert "it is too high where arms differ by less than the spread over seeds (in simulations, 70% of the" in text
    assert "4 of 4 orders held from one size to the next" in text
    assert "\n## What the arms are worth\n" in note(report)
    (written,) = json.loads(json.dumps(found.json(), allow_nan=False))["ladders"]
    assert written["curve"]["exponent"] == pytest.approx(0.3, abs=0.01)
    assert (written["refusal"], written["level"], written["baseline"]) == (None, 0.9, "n_future=1")
    (arm,) = written["arms"]
    assert [one["speedup"] for one in arm["speedups"]] == pytest.approx([1.3] * 5, abs=0.02)
    assert report_json(report)["ladders"] == json.loads(json.dumps(found.json()))["ladders"]
    page = Page(html_page(report, PNG)).texts
    assert {"What the arms are worth", "with ten times the compute", "order at the next size"} <= set(page)
    (table,) = ladder_tables(report.ladders)
    assert table.row_count == 1
    left, right = make_figure(report, {}).axes
    assert left.get_title() == "val/loss/head_1 on the ladder"
    assert left.get_xscale() == right.get_xscale() == "log"
    assert left.get_xlim() == right.get_xlim()
    assert [text.get_text() for text in left.get_xticklabels(minor=True) if text.get_text()] == []
    assert len(left.get_lines()) == 1 + 2 * 3, "a curve, and two arms with their bars' ends"
    (ladder,) = report.ladders
    means, marks, *seeds, zero = (line.get_ydata() for line in right.get_lines())
    gaps = ladder.arms[0].losses - ladder.baseline.losses
    assert np.asarray(means) == pytest.approx(gaps.mean(axis=1))
    assert np.asarray(marks) == pytest.approx(gaps.mean(axis=1))
    assert np.stack([np.asarray(one) for one in seeds], axis=1) == pytest.approx(gaps)
    assert list(zero) == [0.0, 0.0]
    (above,) = right.child_axes
    assert [text.get_text() for text in above.get_xticklabels()] == [f"width={width}" for width in WIDTHS]


def test_of_several_ladders_the_sentence_tells_that_of_the_best_setting_a_baseline_too(tmp_path: Path) -> None:
    """At each of two rates two heads are behind one, and 0.2 is better than 0.1."""
    text = LADDER.replace("axes:\n", "axes:\n  optimizer.lr: [0.1, 0.2]\n")
    cells = cells_of(tmp_path, text)
    fill(cells, speedup=0.7)
    for cell in cells:
        if cell.values["optimizer.lr"] == 0.1:
            result = json.loads((cell.directory / "result.json").read_text())
            result["metrics"]["val/loss/head_1"] += 0.01
            (cell.directory / "result.json").write_text(json.dumps(result))
    report = build_report(load_grid(tmp_path / "grid.yaml"), cells)
    assert [ladder.baseline.name for ladder in report.ladders] == ["lr=0.1 n_future=1", "lr=0.2 n_future=1"]
    assert len(make_figure(report, {}).axes) == 4, "a row for each"
    found = verdict(report)
    assert found.best is not None
    assert found.best.label == "lr=0.2 width=128 n_future=1"
    assert "lower than the best compared with it, lr=0.2 width=128 n_future=2, more than" in found.sentence
    assert "Effective speedup of lr=0.2 n_future=2 over lr=0.2 n_future=1 at width=128: 0.7" in found.sentence


def test_a_report_without_a_ladder_is_as_before(tmp_path: Path) -> None:
    report = report_of(tmp_path, TEXT)
    assert report.ladders == ()
    assert verdict(report).json()["ladders"] == []
    assert "worth" not in markdown(report) + html_page(report, None) + verdict(report).sentence
    assert len(make_figure(report, {}).axes) == 2


def test_a_bent_ladder_is_refused_with_its_reason(tmp_path: Path) -> None:
    report = report_of(tmp_path, bend=0.03)
    (ladder,) = report.ladders
    assert ladder.worths == [None]
    sentence = verdict(report).sentence
    assert "No effective speedup: the ladder of n_future=1 is refused, bent: width=" in sentence
    assert "their order" not in sentence
    assert "| n_future=2 | – | – | – | – | – | – | – |" in markdown(report)
    left, _ = make_figure(report, {}).axes
    assert len(left.get_lines()) == 2 * 3, "no curve"


def test_an_arm_that_is_too_good_is_outside_of_the_range_at_the_largest_size(tmp_path: Path) -> None:
    report = report_of(tmp_path, speedup=3.0)
    sentence = verdict(report).sentence
    assert "Effective speedup of n_future=2 over n_future=1 at width=64: " in sentence
    assert "(90% intervals); none at width=128, outside of the fitted range: the baseline would need " in sentence
    assert "with ten times the compute" not in sentence
    line = "n_future=2 at width=128: no effective speedup, outside of the fitted range: the baseline would need "
    assert line in markdown(report)


@pytest.mark.parametrize("why", ["stopped by the gate", "not finite: a seed of the arm diverged"])
def test_an_arm_without_its_bad_sizes_has_no_trend(tmp_path: Path, why: str) -> None:
    """What is left of its sizes is a selection."""
    report = report_of(tmp_path)
    bad = next(g for g in report.groups if (g.values["model.width"], g.values["model.heads.n_future"]) == (32, 2))
    others, stopped = [group for group in report.groups if group is not bad], [replace(bad, results={})]
    if not why.startswith("stopped"):
        results = {**bad.results, 0: {**bad.results[0], "val/loss/head_1": math.nan}}
        others, stopped = [*others, replace(bad, results=results)], []
    spent = {group.signature: {0: PER_TOKEN * TOKENS * group.values["model.width"] ** 2} for group in report.groups}
    (ladder,) = find_ladders(report.spec, others, "val/loss/head_1", "lower", spent, stopped)
    (worth,) = ladder.worths
    assert worth is not None
    assert [one.refusal for one in worth.speedups] == [None, None, why, None, None]
    assert worth.trend is None
    assert ladder.orders == {}
    shown = make_figure(replace(report, ladders=(ladder,)), {}).axes[1].get_lines()[0]
    widths = [width for width in WIDTHS if width != 32]
    assert np.asarray(shown.get_xdata()).tolist() == [PER_TOKEN * TOKENS * width**2 for width in widths]
    (whole,) = find_ladders(report.spec, report.groups, "val/loss/head_1", "lower", spent)
    assert whole.worths[0] is not None
    assert whole.worths[0].trend is not None
    assert len(whole.orders) == 1


def test_a_baseline_alone_has_its_picture(tmp_path: Path) -> None:
    report = report_of(tmp_path, without=tuple((width, 2) for width in WIDTHS))
    left, right = make_figure(report, {}).axes
    assert [text.get_text() for text in right.texts] == ["nothing to compare with the baseline"]
    assert (len(left.get_xticks()) > 2, len(right.get_xticks())) == (True, 0)


def test_sizes_are_not_compared_with_each_other(tmp_path: Path) -> None:
    """The largest has one head alone, and is the best."""
    report = report_of(tmp_path, without=((128, 2),))
    found = verdict(report)
    assert found.outcome is Outcome.ONE_OF_ITS_SIZE
    assert found.sentence.startswith("No comparison: width=128 n_future=1 has the lowest val/loss/head_1, 1.")
    assert "and no setting of its size has a finite one beside it." in found.sentence
    assert found.json()["compared_with"] is None


def test_missing_cells_shorten_the_ladder_or_cost_one_number(tmp_path: Path) -> None:
    report = report_of(tmp_path, without=((8, 1), (16, 2)))
    (ladder,) = report.ladders
    assert ladder.sizes == ["width=16", "width=32", "width=64", "width=128"]
    assert len(np.asarray(make_figure(report, {}).axes[1].get_lines()[0].get_xdata())) == 3, "not width 16"
    assert ladder.worths[0] is not None
    assert ladder.worths[0].speedups[0].refusal == "missing: no seed in common with the baseline"
    (tmp_path / "last").mkdir()
    sentence = verdict(report_of(tmp_path / "last", without=((128, 2),))).sentence
    assert "of n_future=2 over n_future=1 at width=64: " in sentence
    assert "; none at width=128, missing: no seed in common with the baseline." in sentence
    assert "order" not in sentence, "nothing is known of the order at the largest size"
    (tmp_path / "few").mkdir()
    few = report_of(tmp_path / "few", without=((8, 1), (16, 1)))
    assert str(few.ladders[0].fit.refusal).startswith("too few sizes: 3")


def test_nothing_finished_and_metrics_that_rise_are_refused_too(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, LADDER)
    empty = build_report(load_grid(tmp_path / "grid.yaml"), cells)
    assert "No effective speedup" not in verdict(empty).sentence
    assert "what the arms are worth" in html_page(empty, None).lower()
    make_figure(empty, {})
    (tmp_path / "rising").mkdir()
    rising = report_of(
        tmp_path / "rising",
        LADDER.replace("compare: [val/loss/head_1]", "compare: [{metric: val/loss/head_1, better: higher}]"),
    )
    assert "less is better" in str(rising.ladders[0].fit.refusal)
    json.dumps(verdict(empty).json(), allow_nan=False)


def test_what_the_baseline_leaves_open_has_a_ladder_each(tmp_path: Path) -> None:
    text = LADDER.replace("axes:\n", "axes:\n  model.n_layers: [4, 6]\n")
    report = report_of(tmp_path, text)
    assert [ladder.baseline.name for ladder in report.ladders] == ["n_layers=4 n_future=1", "n_layers=6 n_future=1"]
    assert [[arm.name for arm in ladder.arms] for ladder in report.ladders] == [
        ["n_layers=4 n_future=2"],
        ["n_layers=6 n_future=2"],
    ]


def test_axes_that_advance_with_the_size_belong_to_it(tmp_path: Path) -> None:
    """And each size may have its own number of steps."""
    text = LADDER.replace("axes:\n", "axes:\n  model.n_layers: [4, 5, 6, 7, 8]\n")
    text += "zip: [[model.width, model.n_layers]]\n"
    report = report_of(tmp_path, text)
    (ladder,) = report.ladders
    assert [arm.name for arm in ladder.arms] == ["n_future=2"]
    for cell in report.cells:
        result = Result.read(cell.directory)
        assert result is not None
        steps = cell.values["model.n_layers"]
        Result(step=steps, metrics=result.metrics, tokens=TOKENS, data_fingerprint="d").write(cell.directory)
    assert build_report(report.spec, report.cells).warnings == []


def test_at_a_budget_compute_is_counted_up_to_there(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, LADDER)
    fill(cells)
    histories = {}
    for cell in cells:
        (cell.directory / RUN_ID).write_text(run_id(cell.label))
        half = compute_of(cell) / 2 * (1.3 if cell.values["model.heads.n_future"] == 2 else 1.0)
        histories[run_id(cell.label)] = {
            "val/loss/head_1": [(2, loss(half) + 1e-3 * cell.seed), (5, 1.0)],
            "perf/tokens_seen": [(0, 0.0), (5, 5 * TOKENS / 4)],
            "model/flops_per_token": [(0, compute_of(cell) / TOKENS)],
        }
    spec = load_grid(tmp_path / "grid.yaml")
    report = build_report(spec, cells, None, lambda run, metric: histories[run].get(metric, []), At("step", 2.0))
    (ladder,) = report.ladders
    assert ladder.baseline.compute.tolist() == [PER_TOKEN * TOKENS / 2 * width**2 for width in WIDTHS]
    at = ladder.speedup_at_largest("n_future=2")
    assert at is not None
    assert at[1].estimate is not None
    assert at[1].estimate.value == pytest.approx(1.3, abs=0.02)
    equal = build_report(spec, cells, None, lambda run, metric: histories[run].get(metric, []), At("flops", 2.6e10))
    assert "cost the same compute" in str(equal.ladders[0].fit.refusal) or equal.ladders[0].sizes == []


BAD = {
    "ladder: model.width": "12: ladder: must be a mapping, not text",
    "ladder: {}": "12: ladder: needs size",
    "ladder: {sizes: model.width}": "12: ladder.sizes: unknown key; did you mean 'size'?",
    "ladder: {size: width}": "12: ladder.size: 'width' is not an axis; did you mean 'model.width'?",
    "ladder: {size: 3}": "12: ladder.size: '3' is not an axis",
    "ladder: {size: model.heads.n_future}": "12: ladder.size: model.heads.n_future has 2 values; a ladder needs 4",
}


@pytest.mark.parametrize(("line", "message"), BAD.items(), ids=BAD)
def test_a_bad_ladder_names_file_line_and_key(tmp_path: Path, line: str, message: str) -> None:
    path = grid_file(tmp_path, TEXT + "# \n" * 2 + line + "\n")
    with pytest.raises(InputError) as caught:
        load_cells(path, FakeResolver(), tmp_path)
    assert str(caught.value).splitlines()[0].startswith(f"{path}:{message}")


def test_a_baseline_without_the_size_is_needed(tmp_path: Path) -> None:
    fixed = LADDER.replace("baseline: {", "baseline: {model.width: 8, ")
    with pytest.raises(InputError, match=r"ladder.size: the baseline fixes model.width: leave it out there"):
        load_grid(grid_file(tmp_path, fixed))
    with pytest.raises(InputError, match=r"ladder: needs a `baseline`, on whose ladder"):
        load_grid(grid_file(tmp_path, LADDER.replace("baseline: {model.heads.n_future: 1}\n", "")))
    assert load_grid(grid_file(tmp_path, LADDER)).ladder == Ladder("model.width")
