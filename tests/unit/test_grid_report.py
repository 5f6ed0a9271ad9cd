"""The report's numbers against hand-computed ones, its warnings, and its texts to the letter."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from test_grid_fakes import GRID, cells_of, finish, load_grid, run_id

from mtp_lightning.grid.report.comparison import Report, build_report
from mtp_lightning.grid.report.forms.notices import notices
from mtp_lightning.grid.report.forms.tables import csv_text, markdown, report_json, terminal_table
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.report.metric_names import better_direction, format_value, report_order
from mtp_lightning.grid.report.statistics import Difference, Summary, summarise
from mtp_lightning.grid.run.state import RUN_ID, Result, State, Status
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.units import counted, duration, quantity, size

LOSSES = {(1, 0): 2.0, (1, 1): 2.2, (2, 0): 1.9, (2, 1): 2.2, (4, 0): 2.5, (4, 1): 2.7}


def value(cell: Cell) -> tuple[int, int]:
    return int(cell.values["model.heads.n_future"]), cell.seed


def filled(folder: Path, losses: Mapping[tuple[int, int], float] = LOSSES, text: str = GRID) -> Report:
    """The report of a grid where those cells are finished that have a loss."""
    cells = cells_of(folder, text)
    for cell in cells:
        if value(cell) in losses:
            extra = {"speedup": 1.5, "parameters": 123456.0} if value(cell)[0] == 2 else {"parameters": 123456.0}
            finish(cell, loss_1=losses[value(cell)], **extra)
    return build_report(load_grid(folder / "grid.yaml"), cells)


def close(summary: Summary | None, mean: float, sd: float | None, seeds: int) -> bool:
    assert summary is not None
    return (summary.mean, summary.sd, summary.seeds) == (
        pytest.approx(mean, rel=1e-12),
        sd if sd is None else pytest.approx(sd, rel=1e-9),
        seeds,
    )


def test_means_spreads_and_paired_differences(tmp_path: Path) -> None:
    report = filled(tmp_path)
    one, two, four = report.groups
    loss = "val/loss/head_1"
    assert close(one.summary(loss), 2.1, math.sqrt(0.02), 2)
    assert close(two.summary(loss), 2.05, math.sqrt(0.045), 2)
    assert report.difference(one, loss) is None
    assert close(report.difference(two, loss), -0.05, math.sqrt(0.005), 2)  # of -0.1 and 0.0
    gap = report.difference(four, loss)
    assert gap is not None
    assert gap.sd == pytest.approx(0.0, abs=1e-12)  # 0.5 for both seeds: the seeds' own spread cancels
    assert close(two.summary("decode/speedup"), 1.5, 0.0, 2)
    assert one.summary("decode/speedup") is None
    assert report.difference(two, "decode/speedup") is None
    assert report.metrics == ["val/loss/head_1", "decode/speedup", "model/parameters"]
    assert (report.missing, report.warnings) == ([], [])


def test_only_seeds_that_both_have_are_paired(tmp_path: Path) -> None:
    report = filled(tmp_path, {(1, 0): 2.0, (2, 0): 1.5, (2, 1): 9.0, (4, 1): 3.0})
    _, two, four = report.groups
    assert report.difference(two, "val/loss/head_1") == Difference(-0.5, None, 1)
    assert report.difference(four, "val/loss/head_1") == Difference(1.0, None, 0)  # no common seed: means only
    assert "1.0000, unpaired" in markdown(report)


def test_a_diverged_seed_is_not_averaged_away(tmp_path: Path) -> None:
    found = summarise([1.0, math.inf])
    assert found is not None
    assert math.isnan(found.mean)
    report = filled(tmp_path, {**LOSSES, (2, 1): math.nan})
    assert report_json(report)["groups"][1]["metrics"]["val/loss/head_1"]["mean"] is None
    assert "| nan (1 of 2 not finite) (nan) |" in markdown(report)
    assert "not finite: val/loss/head_1 of n_future=2 seed=1" in notices(report)
    assert verdict(report).sentence.endswith("Not finite: n_future=2.")


def test_missing_cells_are_named_with_their_reason(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    report = filled(tmp_path, {key: loss for key, loss in LOSSES.items() if key not in ((4, 1), (2, 0))})
    lost = next(cell for cell in cells if value(cell) == (4, 1))
    lost.directory.mkdir(parents=True)
    Status(State.FAILED.value, 1, "here", 0.0, reason="OSError: disk full").write(lost.directory)
    report = build_report(report.spec, cells)
    assert notices(report) == [
        "incomplete: 2 of 6 cells missing: n_future=2 seed=0 (missing), n_future=4 seed=1 (failed: OSError: disk full)"
    ]
    assert "2 of 6 cells are missing" in verdict(report).sentence
    assert "| n_future=2, 1 of 2 seeds |" in markdown(report)
    assert "| 2.2000 (+0.0000) |" in markdown(report)
    assert report_json(report)["groups"][1]["cells"] == 2


def test_nothing_finished_is_a_report_too(tmp_path: Path) -> None:
    report = filled(tmp_path, {})
    assert verdict(report).sentence.startswith("No verdict: no finished cell has val/loss/head_1.")
    assert len(notices(report)) == 1
    assert csv_text(report).count("\n") == 1
    assert "0 of 2 seeds" in rendered(report, tmp_path)


def test_different_data_or_steps_are_warned_of(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    for cell in cells:
        at = value(cell)
        finish(cell, step=4 if at[0] == 4 else 5, fingerprint="e" if at == (1, 1) else "d", loss_1=1.0)
    report = build_report(load_grid(tmp_path / "grid.yaml"), cells)
    data, steps = report.warnings
    assert data.startswith("the cells differ in their data")
    assert data.endswith("; e: n_future=1 seed=1)")
    assert "5: n_future=1 seed=0, n_future=1 seed=1, n_future=2 seed=0, n_future=2 seed=1; 4: n_future=4" in steps
    assert notices(report)[1:] == [f"warning: {data}", f"warning: {steps}"]
    assert verdict(report).sentence.endswith("Mind the warnings.")


def test_losses_on_other_windows_are_warned_of(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    for cell, room in zip(cells, (16, 16, None, None, 32, 32)):  # those of earlier versions do not say
        cell.directory.mkdir(parents=True)
        Result(5, {"val/loss/head_1": 1.0}, data_fingerprint="d", window_room=room).write(cell.directory)
    (warning,) = build_report(load_grid(tmp_path / "grid.yaml"), cells).warnings
    assert warning.startswith("the cells differ in their windows, by how far heads look ahead, so")
    assert "16 tokens: n_future=1 seed=0, n_future=1 seed=1; 32 tokens: n_future=4 seed=0" in warning


def test_metrics_that_a_result_lacks_are_read_from_the_record(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    asked = []

    def read(run_id: str) -> Mapping[str, float]:
        asked.append(run_id)
        return {"decode/speedup": 3.0, "val/loss/head_1": 99.0, "other": 1.0}

    for index, cell in enumerate(cells[:3]):
        finish(cell, loss_1=1.0, **({"speedup": 2.0} if index == 0 else {}))
        if index < 2:
            (cell.directory / RUN_ID).write_text(f"{run_id(str(index))}\n")
    report = build_report(load_grid(tmp_path / "grid.yaml"), cells, read)
    assert asked == [run_id("1")]
    assert report.groups[0].results == {
        0: {"val/loss/head_1": 1.0, "decode/speedup": 2.0},
        1: {"val/loss/head_1": 1.0, "decode/speedup": 3.0},
    }


def test_a_partial_baseline_compares_like_with_like(tmp_path: Path) -> None:
    text = GRID.replace("axes:\n", "axes:\n  model.width: [8, 16]\n").replace("[1, 2, 4]", "[1, 2]")
    cells = cells_of(tmp_path, text)
    for cell in cells:
        finish(cell, loss_1=cell.values["model.width"] * cell.values["model.heads.n_future"] + 0.0)
    report = build_report(load_grid(tmp_path / "grid.yaml"), cells)
    gaps = [report.difference(group, "val/loss/head_1") for group in report.groups]
    assert [gap and gap.mean for gap in gaps] == [None, 8.0, None, 16.0]


def test_markdown_to_the_letter(tmp_path: Path) -> None:
    assert markdown(filled(tmp_path)) == (
        "# head-count\n\n"
        "No difference beyond the spread over 2 seeds (0.2121): n_future=2 has the lowest val/loss/head_1, 2.0500, but "
        "only 0.0500 lower than the baseline n_future=1.\n\n"
        "| metric | n_future=1, baseline, 2 seeds | n_future=2, 2 seeds | n_future=4, 2 seeds |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| val/loss/head_1 ↓ | 2.1000 ± 0.1414 | 2.0500 ± 0.2121 (-0.0500 ± 0.0707) "
        "| 2.6000 ± 0.1414 (+0.5000 ± 0.0000) |\n"
        "| decode/speedup ↑ | – | 1.5000 ± 0.0000 | – |\n"
        "| model/parameters | 123 k | 123 k (+0) | 123 k (+0) |\n\n"
        "Mean ± sample standard deviation over seeds; in brackets the difference to the baseline, by seed.\n"
    )


def test_csv_to_the_letter(tmp_path: Path) -> None:
    report = filled(tmp_path, {(1, 0): 2.0, (1, 1): 2.5, (2, 0): 1.5, (2, 1): 2.25, (4, 0): 2.5})
    assert csv_text(report) == (
        "group,model.heads.n_future,metric,at,mean,sd,seeds,cells,difference,difference_sd,ci_low,ci_high,pairs,ci_method\n"
        "n_future=1,1,val/loss/head_1,,2.25,0.353553390593,2,2,,,,,,\n"
        "n_future=1,1,model/parameters,,123456,0,2,2,,,,,,\n"
        "n_future=2,2,val/loss/head_1,,1.875,0.53033008589,2,2,-0.375,0.176776695297,,,2,\n"
        "n_future=2,2,decode/speedup,,1.5,0,2,2,,,,,,\n"
        "n_future=2,2,model/parameters,,123456,0,2,2,0,0,,,2,\n"
        "n_future=4,4,val/loss/head_1,,2.5,,1,2,0.5,,,,1,\n"
        "n_future=4,4,model/parameters,,123456,,1,2,0,,,,1,\n"
    )


THREE = GRID.replace("[0, 1]", "[0, 1, 2]")
DIFFERENCES = (-0.25, -0.375, -0.5)
LOW, HIGH = "-0.6855", "-0.0645"
"""-0.375 -/+ 4.3027 x 0.125 / sqrt(3)"""


def three_seeds(folder: Path, differences: tuple[float, ...] = DIFFERENCES) -> Report:
    losses = {(1, seed): 2.0 + 0.125 * seed for seed in range(3)}
    losses |= {(2, seed): losses[1, seed] + gap for seed, gap in enumerate(differences)}
    return filled(folder, {**losses, **{(4, seed): 4.0 for seed in range(3)}}, THREE)


def test_from_three_seeds_on_there_is_an_interval_in_table_csv_and_json(tmp_path: Path) -> None:
    report = three_seeds(tmp_path)
    text = markdown(report)
    assert f"| 1.7500 ± 0.0000 (-0.3750 [{LOW}, {HIGH}]) |" in text
    assert "with its 95% confidence interval (Student's t)." in text
    assert "[95% interval]" in rendered(report, tmp_path)
    row = next(line for line in csv_text(report).splitlines() if line.startswith("n_future=2,2,val/loss/head_1"))
    assert row.startswith("n_future=2,2,val/loss/head_1,,1.75,0,3,3,-0.375,0.125,-0.685517213")
    assert row.endswith(",3,t")
    gap = report_json(report)["groups"][1]["metrics"]["val/loss/head_1"]["difference"]
    assert gap["interval"] == {"low": pytest.approx(-0.685517214), "high": pytest.approx(-0.064482786), "method": "t"}


def test_a_seed_that_one_of_two_lacks_is_told_beside_the_difference(tmp_path: Path) -> None:
    losses = {(1, 0): 2.0, (1, 1): 2.2, (2, 0): 1.0, (2, 1): 1.3, (2, 2): 1.1}
    assert "(-0.9500 ± 0.0707, 2 pairs) |" in markdown(filled(tmp_path, losses, THREE))


def test_settings_without_an_axis_and_with_other_keys_are_told_apart(tmp_path: Path) -> None:
    report = filled(tmp_path)
    one, two, four = report.groups
    mixed = [one, replace(two, values={"optimizer.lr": 0.1}), replace(four, values={**four.values, "model.width": 8})]
    header, *rows = csv_text(replace(report, groups=mixed)).splitlines()
    assert header.startswith("group,model.heads.n_future,optimizer.lr,model.width,metric,")
    starts = [row.partition(",val/")[0] for row in rows if ",val/loss/head_1," in row]
    assert starts == ["n_future=1,1,,", "n_future=2,,0.1,", "n_future=4,4,,8"]


def test_json_says_what_the_table_says(tmp_path: Path) -> None:
    text = json.dumps(report_json(filled(tmp_path)), allow_nan=False)
    loss = json.loads(text)["groups"][1]["metrics"]["val/loss/head_1"]
    assert loss["mean"] == pytest.approx(2.05)
    assert loss["difference"]["mean"] == pytest.approx(-0.05)


def rendered(report: Report, folder: Path) -> str:
    with (folder / "table").open("w") as file:
        Console(file=file, width=160).print(terminal_table(report))
    return (folder / "table").read_text()


def test_few_settings_are_columns_and_many_are_rows(tmp_path: Path) -> None:
    few = rendered(filled(tmp_path), tmp_path)
    assert "val/loss/head_1 ↓" in few
    assert "baseline, 2 seeds" in few
    assert "-0.0500 ± 0.0707" in few
    text = GRID.replace("[1, 2, 4]", "[1, 2, 3, 4, 5, 6]")
    many = rendered(filled(tmp_path, {(n, s): 1.0 + n for n in range(1, 7) for s in (0, 1)}, text), tmp_path)
    assert "n_future=1, baseline, 2 seeds" in many
    assert "model/parameters" not in many
    report = build_report(load_grid(tmp_path / "grid.yaml"), cells_of(tmp_path, text))
    assert "model/parameters" in markdown(report)


def test_long_names_of_settings_leave_room_for_the_numbers(tmp_path: Path) -> None:
    text = GRID.replace("[1, 2, 4]", "[1, 2, 3, 4, 5, 6]")
    report = filled(tmp_path, {(n, s): 1.0 + n + s / 10 for n in range(1, 7) for s in (0, 1)}, text)
    groups = [replace(group, label=f"{'a_long_name=1 ' * 15}{group.label}") for group in report.groups]
    shown = rendered(replace(report, groups=groups), tmp_path)
    assert "…" not in shown
    assert "2.0500 ± 0.0707" in shown
    assert "+5.0000 ± 0.0000" in shown


def test_metrics_come_in_the_order_of_the_report_with_heads_by_number() -> None:
    present = ["model/parameters", "val/loss/head_10", "val/loss/head_2", "train/loss", "val/accuracy/head_1", "zzz"]
    assert report_order(["zzz", "absent"], present) == [
        "zzz",
        "absent",
        "val/loss/head_2",
        "val/loss/head_10",
        "val/accuracy/head_1",
        "model/parameters",
    ]


def test_directions_by_name() -> None:
    lower = ("val/bits_per_byte", "perf/peak_memory_bytes", "val/loss/head_3")
    assert [better_direction(name) for name in lower] == ["lower"] * 3
    assert [better_direction(name) for name in ("perf/tokens_per_second_median", "eval/x/pass_at_1")] == ["higher"] * 2
    assert better_direction("decode/code/simulated_length") == "higher"
    assert better_direction("decode/glossary/simulated_length") == "higher"
    for drafts in (
        [f"decode/{of}simulated_{what}" for of in ("", "code/", "entropy_1_to_2/")] for what in ("length", "bytes")
    ):
        assert report_order([], [*drafts, "decode/tokens_per_forward"]) == ["decode/tokens_per_forward", *drafts[:2]]
        assert [format_value(name, 2.5) for name in drafts] == ["2.5000"] * 3, "no memory"
    assert better_direction("model/parameters") is None


def test_numbers_have_the_units_people_use() -> None:
    numbers = {0.0: "0", 0.5: "0.50", 9.99: "9.99", 950.0: "950", 999.9: "1.00 k", 12345.0: "12.3 k", -2e9: "-2.00 G"}
    assert [quantity(x) for x in numbers] == list(numbers.values())
    assert [size(x) for x in (512.0, 1289748.0, 3.0 * 1024**3)] == ["512 B", "1.23 MiB", "3.00 GiB"]
    assert [duration(x) for x in (0.4, 59.6, 125.0, 3700.0)] == ["0 s", "1 min 00 s", "2 min 05 s", "1 h 01 min"]
    seeds = [counted(*given) for given in ((1, "seed"), (2, "seed"), (1, "seed", 2), (1, "seed", 1), (0, "seed", 2))]
    assert seeds == ["1 seed", "2 seeds", "1 of 2 seeds", "1 seed", "0 of 2 seeds"]
    assert format_value("perf/peak_memory_bytes", 1289748.0) == "1.23 MiB"
    assert format_value("perf/tokens_per_second_median", -1234.0, signed=True) == "-1.23 k"
    numbers = {1.23456: "1.2346", 12.3456: "12.346", 1234.56: "1234.6", 0.00012345: "0.000123", 0.0: "0.0000"}
    assert [format_value("x", x) for x in numbers] == list(numbers.values())


def test_a_number_that_no_square_holds_is_said_to_be_none(tmp_path: Path) -> None:
    report = filled(tmp_path, {**LOSSES, (2, 1): 1e200})
    assert "not finite: val/loss/head_1 of n_future=2 seed=1" in notices(report)
    assert "nan (1 of 2 not finite)" in markdown(report)
    assert verdict(report).not_finite == ["n_future=2"]
