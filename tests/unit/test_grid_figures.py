"""The figure: a PNG with the axes, lines and ticks it should have, made without touching global state."""

import itertools
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_grid_fakes import GRID, cells_of, finish, load_grid

from mtp_lightning.grid.report.comparison import Report, build_report
from mtp_lightning.grid.report.equal_training import EqualTraining
from mtp_lightning.grid.report.forms.figure_panels import readable
from mtp_lightning.grid.report.forms.figures import Curves, curve_metric, figure_png, make_figure
from mtp_lightning.grid.report.metric_names import title_and_unit
from mtp_lightning.grid.spec.grid_spec import At


def report_of(folder: Path, text: str = GRID, **files: str) -> Report:
    cells = cells_of(folder, text, **files)
    for cell in cells:
        n = cell.config["model"]["heads"]["n_future"]
        heads = {f"loss_{i}": 2.0 + 0.35 * math.log(1 + i) - 0.02 * n + 0.04 * cell.seed for i in range(1, n + 1)}
        finish(cell, **heads)
    return build_report(load_grid(folder / "grid.yaml"), cells)


def curves_of(report: Report, points: int = 30) -> Curves:
    return {
        group.signature: {
            seed: [
                (step * 10, 2.1 + 2 * math.exp(-step / 8) - 0.03 * i + 0.05 * seed + 0.02 * math.sin(step + seed))
                for step in range(points)
            ]
            for seed in group.results
        }
        for i, group in enumerate(report.groups)
    }


def test_a_png_is_written_without_pyplot(tmp_path: Path) -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    report = report_of(tmp_path)
    data = figure_png(report, curves_of(report))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    assert struct.unpack(">II", data[16:24]) == (1760, 736)
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_titles_labels_lines_and_ticks(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    figure = make_figure(report, curves_of(report))
    left, right = figure.axes
    assert figure.get_suptitle() == "head-count"
    assert (left.get_xlabel(), left.get_ylabel()) == ("step", "nats per token")
    assert left.get_title() == "Validation loss of head 1"
    assert [line.get_label() for line in left.get_lines()] == [f"n_future={n} (2 seeds)" for n in (1, 2, 4)]
    assert right.get_xlabel() == "n_future"
    assert right.get_title() == "Final validation loss of each head"
    assert [text.get_text() for text in right.get_xticklabels()] == ["1", "2", "4"]
    assert list(right.get_xticks()) == [1.0, 2.0, 4.0]
    names = [container.get_label() for container in right.containers]
    assert names == ["head 1", "head 2", "head 3", "head 4"]
    assert [len(container.lines[0].get_xdata()) for container in right.containers] == [3, 2, 1, 1]
    assert right.containers[0].lines[0].get_ydata()[1] == pytest.approx(2.0 + 0.35 * math.log(2) - 0.04 + 0.02)


def test_the_mean_is_over_the_steps_all_seeds_have(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    curves = {report.groups[0].signature: {0: [(0, 4.0), (10, 2.0), (20, 1.0)], 1: [(0, 6.0), (20, 3.0), (30, 9.0)]}}
    (line,) = make_figure(report, curves).axes[0].get_lines()
    assert list(line.get_xdata()) == [0, 20]
    assert list(line.get_ydata()) == [5.0, 2.0]


def test_values_that_are_no_numbers_are_categories(tmp_path: Path) -> None:
    text = GRID.replace("model.heads.n_future: [1, 2, 4]", "model: [small.yaml, a_rather_long_name.yaml]")
    text = text.replace("baseline: {model.heads.n_future: 1}\n", "")
    report = report_of(tmp_path, text, small="model: {width: 8}", a_rather_long_name="model: {width: 9}")
    right = make_figure(report, curves_of(report)).axes[1]
    assert [text.get_text() for text in right.get_xticklabels()] == ["small", "a_rather_long_name"]
    assert right.get_xlabel() == "model"


def test_two_axes_are_settings_side_by_side(tmp_path: Path) -> None:
    text = GRID.replace("axes:\n", "axes:\n  model.width: [8, 16]\n")
    report = report_of(tmp_path, text.replace("baseline: {model.heads.n_future: 1}\n", ""))
    right = make_figure(report, {}).axes[1]
    assert next(text.get_text() for text in right.get_xticklabels()) == "width=8 n_future=1"


def test_long_names_are_rows_and_what_was_measured_once_has_no_curve(tmp_path: Path) -> None:
    text = GRID.replace("axes:\n", "axes:\n  model.width: [8, 16]\n").replace("[1, 2, 4]", "[1, 2]")
    report = report_of(tmp_path, text.replace("baseline: {model.heads.n_future: 1}\n", ""))
    long = [replace(group, label=f"what the optimizer does, {i}") for i, group in enumerate(report.groups)]
    report = replace(report, groups=long)
    (only,) = make_figure(report, curves_of(report, points=1)).axes
    assert [text.get_text() for text in only.get_yticklabels()] == [group.label for group in long]
    first = only.containers[0].lines[0]
    assert list(first.get_ydata()) == [0, 1, 2, 3]
    assert first.get_xdata()[0] == pytest.approx(2.0 + 0.35 * math.log(2) - 0.02 + 0.02)
    assert only.get_ylim() == (3.5, -0.5)


def test_without_numbers_the_figure_says_so(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    report = build_report(load_grid(tmp_path / "grid.yaml"), cells)
    left, right = make_figure(report, {}).axes
    assert [text.get_text() for text in left.texts] == ["no curves recorded"]
    assert [text.get_text() for text in right.texts] == ["no finished cell has these numbers"]
    assert figure_png(report, {}).startswith(b"\x89PNG")


@pytest.mark.parametrize(("steps", "curves", "bands"), [("[5, 6]", 6, 6), ("[5, 6, 7, 8]", 12, 0)])
def test_no_two_of_many_curves_look_alike_and_a_dozen_have_no_bands(
    tmp_path: Path, steps: str, curves: int, bands: int
) -> None:
    """Which would cover each other, and the curves."""
    text = GRID.replace("overrides: {trainer.max_steps: 5}\naxes:\n", f"axes:\n  trainer.max_steps: {steps}\n")
    report = report_of(tmp_path, text)
    left = make_figure(report, curves_of(report)).axes[0]
    lines = left.get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == curves
    assert len(left.collections) == bands
    assert left.get_legend().get_title().get_text().startswith("mean; band" if bands else "mean over seeds")


PROBES = [f"probe/polynomial/m_{m}" for m in (1, 2, 3)]


def test_what_tells_many_curves_apart_stands_below_them_inside_the_figure(tmp_path: Path) -> None:
    report = report_of(tmp_path, GRID.replace("axes:\n", "axes:\n  model.width: [8, 16]\n"))
    figure = make_figure(report, curves_of(report))
    FigureCanvasAgg(figure).draw()
    left = figure.axes[0]
    box = left.get_legend().get_window_extent()
    assert 0 <= box.y0 < box.y1 <= left.get_window_extent().y0


def test_probes_with_numbers_are_a_line_for_each_setting_along_them(tmp_path: Path) -> None:
    """As in the paper's figure 8; the curves are of the metric that is compared first."""
    text = GRID.replace(
        "compare: [val/loss/head_1, decode/speedup]", f"compare: [{', '.join(PROBES)}, val/loss/head_1]"
    )
    cells = cells_of(tmp_path, text)
    for cell in cells:
        n = cell.config["model"]["heads"]["n_future"]
        finish(cell, loss_1=1.0, **{name: 0.1 * n / m for m, name in enumerate(PROBES, start=1)})
    report = build_report(load_grid(tmp_path / "grid.yaml"), cells)
    assert curve_metric(report) == PROBES[0]
    left, right = make_figure(report, curves_of(report)).axes
    assert (left.get_title(), left.get_ylabel()) == (PROBES[0], "accuracy")
    assert (right.get_title(), right.get_xlabel()) == ("probe/polynomial at the end", "m")
    assert list(right.get_xticks()) == [1, 2, 3]
    lines = [container.lines[0] for container in right.containers]
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3]] * 3
    assert [list(line.get_ydata()) for line in lines] == [
        pytest.approx([0.1 * n, 0.1 * n / 2, 0.1 * n / 3]) for n in (1, 2, 4)
    ]


def test_probes_without_numbers_are_lines_along_the_axis(tmp_path: Path) -> None:
    text = GRID.replace(
        "val/loss/head_1, decode/speedup", "probe/star_graph/branch, probe/star_graph/path, val/loss/head_1"
    )
    cells = cells_of(tmp_path, text)
    for cell in cells:
        finish(cell, loss_1=1.0, **{"probe/star_graph/branch": 0.5, "probe/star_graph/path": 0.4})
    report = build_report(load_grid(tmp_path / "grid.yaml"), cells)
    _, right = make_figure(report, {}).axes
    assert right.get_title() == "probe/star_graph"
    assert [container.get_label() for container in right.containers] == ["branch", "path"]
    assert list(right.get_xticks()) == [1.0, 2.0, 4.0]


def seeded(folder: Path, text: str = GRID) -> Report:
    """Three seeds; n_future=2 is 0.1, 0.2, 0.3 below the baseline, n_future=4 has one seed, and that not finite."""
    cells = cells_of(folder, text.replace("[0, 1]", "[0, 1, 2]"))
    for cell in cells:
        n = cell.config["model"]["heads"]["n_future"]
        if n == 4 and cell.seed:
            continue
        gap = {1: 0.0, 2: -0.1 * (cell.seed + 1), 4: math.nan}[n]
        finish(cell, loss_1=2.0 + 0.5 * cell.seed + gap)
    return build_report(load_grid(folder / "grid.yaml"), cells)


def test_an_ablation_is_differences_one_below_the_other(tmp_path: Path) -> None:
    report = seeded(tmp_path)
    report = replace(report, spec=replace(report.spec, ablate=True))
    _, right = make_figure(report, {}).axes
    assert right.get_title() == "Validation loss of head 1"
    assert right.get_xlabel() == "difference to the baseline, nats per token, left is better"
    assert right.get_legend().get_title().get_text() == "against n_future=1"
    assert [text.get_text() for text in right.get_yticklabels()] == ["n_future=2 (3 seeds)", "n_future=4 (not finite)"]
    assert right.yaxis_inverted()
    zero, seeds, *_, means = right.get_lines()
    assert list(zero.get_xdata()) == [0.0, 0.0]
    assert sorted(seeds.get_xdata()) == pytest.approx([-0.3, -0.2, -0.1])
    assert (list(means.get_xdata()), list(means.get_ydata())) == ([pytest.approx(-0.2)], [0])
    (ends,) = right.containers[0].lines[2][0].get_segments()
    assert [x for x, _ in ends] == pytest.approx([-0.2 - 0.248414, -0.2 + 0.248414], abs=1e-5)
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["one seed", "mean", "95% interval"]


def test_a_difference_without_a_common_seed_is_called_unpaired(tmp_path: Path) -> None:
    report = seeded(tmp_path)
    one, two, four = report.groups
    apart = replace(two, results={7: two.results[0], 8: two.results[1]})
    report = replace(report, spec=replace(report.spec, ablate=True), groups=[one, apart, four])
    labels = [text.get_text() for text in make_figure(report, {}).axes[1].get_yticklabels()]
    assert labels == ["n_future=2 (unpaired)", "n_future=4 (not finite)"]


def test_several_axes_with_a_baseline_are_differences_too(tmp_path: Path) -> None:
    text = GRID.replace("axes:\n", "axes:\n  model.width: [8, 16]\n")
    right = make_figure(report_of(tmp_path, text), {}).axes[1]
    labels = [text.get_text() for text in right.get_yticklabels()]
    assert labels == [f"width={width} n_future={n} (2 seeds)" for width in (8, 16) for n in (2, 4)]
    assert right.get_legend().get_title().get_text() == "against each one's\nbaseline"
    assert "95% interval" not in [text.get_text() for text in right.get_legend().get_texts()]


def test_rows_of_several_lines_do_not_lie_on_each_other(tmp_path: Path) -> None:
    """Against several baselines settings go by what they differ in, once where two keys differ together."""
    axes = "axes:\n  model.width: [8, 16, 32, 64, 128]\n  model.n_layers: [4, 5, 6, 7, 8]\n"
    text = GRID.replace("axes:\n", axes) + "zip: [[model.width, model.n_layers]]\n"
    report = report_of(tmp_path, text)
    scaling = {"kind": "linear", "factor": 4.0, "original_max_positions": 1024}
    more = {f"another_key_{i}": i for i in range(8)}
    long = [
        replace(g, values={**g.values, "model.n_layers": scaling | {"low": low} | (more if low == 6 else {})})
        for g in report.groups
        for low in [g.values["model.n_layers"]]
    ]
    figure = make_figure(replace(report, groups=long), curves_of(report))
    FigureCanvasAgg(figure).draw()
    left, right = figure.axes
    labels = right.get_yticklabels()
    assert labels[0].get_text().replace("\n", " ") == (
        "n_layers=factor:4, kind:linear, low:4, original_max_positions:1024 n_future=2 (2\u00a0seeds)"
    )
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) == 10
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(boxes))
    assert left.get_window_extent().width > 0.3 * figure.bbox.width, "the names leave the curves room"
    legend = left.get_legend().get_window_extent()
    assert 0 <= legend.y0 < legend.y1 <= left.get_window_extent().y0


def test_a_setting_with_another_key_makes_categories(tmp_path: Path) -> None:
    report = report_of(tmp_path, GRID.replace("baseline: {model.heads.n_future: 1}\n", ""))
    one, two, four = report.groups
    mixed = replace(report, groups=[one, two, replace(four, values={"optimizer.lr": 0.1}, label="lr=0.1")])
    right = make_figure(mixed, {}).axes[1]
    assert [text.get_text() for text in right.get_xticklabels()] == ["n_future=1", "n_future=2", "lr=0.1"]
    assert list(right.get_xticks()) == [0, 1, 2]


def test_at_a_budget_the_curves_run_along_it(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    rates = {cell.signature: 100.0 * cell.config["model"]["heads"]["n_future"] for cell in report.cells}
    at = {"val/loss/head_1": At("flops", 2e4), "val/loss/head_2": At("flops", 2e4)}
    left, right = make_figure(
        replace(report, equal_training=EqualTraining(at, {}, {"flops": rates}, [])), curves_of(report, 4)
    ).axes
    assert left.get_xlabel() == "FLOPs (dotted: where they are compared)"
    one, _, four, dotted = left.get_lines()
    assert [list(line.get_xdata()) for line in (one, four)] == [[0, 1000, 2000, 3000], [0, 4000, 8000, 12000]]
    assert list(dotted.get_xdata()) == [2e4, 2e4]
    assert right.get_title() == "Validation loss of each head at 20.0 k FLOPs"
    assert [container.get_label() for container in right.containers] == ["head 1", "head 2"], (
        "what is at the end is not"
    )


def test_in_an_ablation_a_setting_goes_by_what_it_changes(tmp_path: Path) -> None:
    text = GRID.replace("axes:\n", "ablate: true\naxes:\n  model.width: [8, 16]\n")
    report = report_of(tmp_path, text.replace("baseline: {", "baseline: {model.width: 8, "))
    left, right = make_figure(report, curves_of(report)).axes
    changed = ["n_future=2", "n_future=4"]
    assert sorted(text.get_text() for text in right.get_yticklabels()) == sorted(
        f"{label} (2 seeds)" for label in [*changed, "width=16"]
    )
    assert sorted(line.get_label() for line in left.get_lines()) == sorted(
        f"{label} (2 seeds)" for label in ["baseline", *changed, "width=16"]
    )


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("val/loss/head_2", "nats per token"),
        ("perf/tokens_per_second", "perf/tokens_per_second"),
        ("probe/polynomial/m_1", "accuracy"),
        ("probe/induction/repeated/loss/head_1", "nats per token"),
        ("probe/induction/names_seen/accuracy/lead_step", "step"),
        ("probe/induction/previous_token/max", "score"),
        ("probe/induction/without_top_3/names_seen/drop", "accuracy lost"),
    ],
)
def test_what_a_metric_counts(metric: str, unit: str) -> None:
    assert title_and_unit(metric)[1] == unit


def test_parts_of_a_configuration_are_written_out() -> None:
    assert readable("n_future=4 (2 seeds)") == "n_future=4 (2 seeds)"
    name = "heads=kind:markov,markov_rank:64,n_future:4 (3 seeds)"
    assert readable(name) == "heads=kind:markov,\nmarkov_rank:64, n_future:4\n(3\u00a0seeds)"
