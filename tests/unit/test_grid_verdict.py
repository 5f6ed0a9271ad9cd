"""What the verdict says of made-up numbers, to the letter."""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from test_grid_fakes import GRID, cells_of, finish, grid_file, load_grid
from test_grid_gate import GATED, made, pause
from test_grid_report import HIGH, LOSSES, LOW, filled, three_seeds, value

from mtp_lightning.grid.report.comparison import build_report
from mtp_lightning.grid.report.forms.tables import markdown
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.report.verdict import Outcome

VERDICTS = {
    "better": (
        {**LOSSES, (2, 0): 1.0, (2, 1): 1.2},
        "n_future=2 has the lowest val/loss/head_1, 1.1000: 1.0000 lower than the baseline n_future=1, more than the "
        "spread over 2 seeds (0.1414), which chance makes of equal settings in one grid of four or more: an interval "
        "needs 3 seeds.",
    ),
    "within": (
        LOSSES,
        "No difference beyond the spread over 2 seeds (0.2121): n_future=2 has the lowest val/loss/head_1, 2.0500, but "
        "only 0.0500 lower than the baseline n_future=1.",
    ),
    "baseline": (
        {**LOSSES, (1, 0): 1.0, (1, 1): 1.0},
        "n_future=1, the baseline, has the lowest val/loss/head_1, 1.0000: 1.0500 lower than the next, n_future=2, "
        "more than the spread over 2 seeds (0.2121), which chance makes of equal settings in one grid of four: an "
        "interval needs 3 seeds.",
    ),
    "tie": (
        dict.fromkeys(LOSSES, 1.0),
        "No difference beyond the spread over 2 seeds (0.0000): n_future=1, the baseline, has the lowest "
        "val/loss/head_1, 1.0000, but is equal to the next, n_future=2.",
    ),
    "one seed": (
        {(1, 0): 2.0, (2, 0): 1.0, (4, 0): 3.0, (4, 1): 3.0},
        "n_future=2 has the lowest val/loss/head_1, 1.0000: 1.0000 lower than the baseline n_future=1; with one seed "
        "nothing is known about the spread. Provisional: 2 of 6 cells are missing.",
    ),
    "alone": (
        {(4, 0): 2.0},
        "No comparison: only n_future=4 has val/loss/head_1. Provisional: 5 of 6 cells are missing.",
    ),
    "others diverged": (
        {key: 1.0 if key[0] == 4 else math.nan for key in LOSSES},
        "n_future=4 has the only finite val/loss/head_1, 1.0000. Not finite: n_future=1, n_future=2.",
    ),
    "all diverged": (
        dict.fromkeys(LOSSES, math.nan),
        "No verdict: val/loss/head_1 is not a finite number in any setting.",
    ),
}


@pytest.mark.parametrize(("losses", "sentence"), VERDICTS.values(), ids=VERDICTS)
def test_verdicts_say_what_the_numbers_do(
    tmp_path: Path, losses: Mapping[tuple[int, int], float], sentence: str
) -> None:
    assert verdict(filled(tmp_path, losses)).sentence == sentence


@pytest.mark.parametrize("finished", [(1, 2), (1,)])
def test_a_best_baseline_is_compared_with_what_has_it_not_with_another_baseline(
    tmp_path: Path, finished: tuple[int, ...]
) -> None:
    """Two rates, which the baseline leaves open as it does sizes: at 0.1 one head is best, and the next
    best of all is one head at 0.2. Where no other setting is there yet, that is what is left."""
    text = GRID.replace("axes:\n", "axes:\n  optimizer.lr: [0.1, 0.2]\n").replace("[1, 2, 4]", "[1, 2]")
    cells = cells_of(tmp_path, text)
    for cell in cells:
        n, rate = cell.values["model.heads.n_future"], cell.values["optimizer.lr"]
        if n in finished:
            finish(cell, loss_1=n + rate + cell.seed / 100)
    found = verdict(build_report(load_grid(tmp_path / "grid.yaml"), cells))
    assert found.best is not None
    assert found.other is not None
    assert found.best.label == "lr=0.1 n_future=1"
    label, kind = ("lr=0.1 n_future=2", "best compared with it") if 2 in finished else ("lr=0.2 n_future=1", "next")
    assert found.other.label == label
    assert f"lower than the {kind}, {label}, more than" in found.sentence


def test_a_difference_that_is_the_same_on_every_seed_is_one(tmp_path: Path) -> None:
    """A metric that is too coarse to differ between seeds, such as exact match."""
    losses = {(n, seed): {1: 1.0, 2: 0.5, 4: 0.75}[n] for n in (1, 2, 4) for seed in range(3)}
    found = verdict(filled(tmp_path, losses, GRID.replace("[0, 1]", "[0, 1, 2]")))
    assert found.outcome is Outcome.DIFFERENCE
    assert found.sentence == (
        "n_future=2 has the lowest val/loss/head_1, 0.5000: 0.5000 lower than the baseline n_future=1, more than the "
        "spread over 3 seeds (0.0000), and by the same on every seed."
    )


@pytest.mark.parametrize("settings", [2, 3])
def test_the_sentence_follows_the_outcome(settings: int, tmp_path: Path) -> None:
    """From six seeds on the plain interval is the bootstrap's, and that for the best of several is Student's."""
    numbers, run = [*range(1, settings + 1)], [*range(6)]
    text = GRID.replace("[1, 2, 4]", str(numbers)).replace("[0, 1]", str(run))
    report = filled(tmp_path, {(n, seed): 1.0 for n in numbers for seed in run}, text)
    chance, told = random.Random(0), []
    for _ in range(120):
        moved = [
            replace(g, results={s: {"val/loss/head_1": chance.gauss(0.9 if i else 1, 0.1)} for s in run})
            for i, g in enumerate(report.groups)
        ]
        found = verdict(replace(report, groups=moved))
        assert found.difference is not None
        assert found.difference.interval is not None
        excludes = [found.difference.interval.excludes_zero, found.among is None or found.among.excludes_zero]
        assert (found.is_difference, found.sentence.startswith("No difference")) == (all(excludes), not all(excludes))
        told.append(all(excludes))
    assert 10 < sum(told) < 110


def test_no_verdict_where_means_and_paired_differences_disagree(tmp_path: Path) -> None:
    """n_future=2 looks better only because it lacks the seed that is bad for all."""
    losses = {(1, 0): 1.0, (1, 1): 2.0, (2, 0): 1.1}
    sentence = verdict(filled(tmp_path, losses)).sentence
    assert sentence.startswith("No verdict: n_future=2 and n_future=1 have val/loss/head_1 of different seeds.")


def test_verdicts_know_which_way_is_better(tmp_path: Path) -> None:
    text = GRID.replace("[val/loss/head_1, decode/speedup]", "[val/accuracy/head_1]")
    cells = cells_of(tmp_path, text)
    for cell in cells:
        finish(cell, **{"val/accuracy/head_1": 0.1 * value(cell)[0] + 0.001 * cell.seed, "odd": 1.0})
    spec = load_grid(tmp_path / "grid.yaml")
    assert verdict(build_report(spec, cells)).sentence.startswith(
        "n_future=4 has the highest val/accuracy/head_1, 0.4005: 0.30"
    )
    odd = load_grid(grid_file(tmp_path, text.replace("val/accuracy/head_1", "odd")))
    assert (
        verdict(build_report(odd, cells)).sentence
        == "No verdict: whether a lower or a higher odd is better is not known."
    )


def test_the_verdict_rests_on_the_interval_where_there_is_one(tmp_path: Path) -> None:
    assert verdict(three_seeds(tmp_path)).sentence == (
        f"No difference beyond chance (95% interval [{LOW}, {HIGH}] over 3 seeds leaves out 0, but not that for the "
        "best of 2 settings, [-0.8228, +0.0728]): n_future=2 has the lowest val/loss/head_1, 1.7500, but only 0.3750 "
        "lower than the baseline n_future=1."
    )
    sentence = verdict(three_seeds(tmp_path, (-0.37, -0.38, -0.39))).sentence
    assert "over 3 seeds leaves out 0, so does that for the best of 2 settings, [" in sentence
    # Larger than every spread, and yet such three differences are no evidence.
    assert verdict(three_seeds(tmp_path, (-0.1, -0.3, -0.5))).sentence == (
        "No difference beyond chance (95% interval [-0.7968, +0.1968] over 3 seeds): n_future=2 has the lowest "
        "val/loss/head_1, 1.8250, but only 0.3000 lower than the baseline n_future=1."
    )


def test_what_the_gate_stopped_was_compared_too_with_its_own_baseline(tmp_path: Path) -> None:
    """Of two widths, each with a baseline: what was stopped of the other is no rival of the best."""
    text = GATED.replace("axes:\n", "axes:\n  model.width: [8, 16]\n").replace("[1, 2, 4]", "[1, 2, 4, 5]")
    spec, cells = made(tmp_path, text.replace("[0, 1]", "[0, 1, 2]"))
    for cell in cells:
        n, width = cell.values["model.heads.n_future"], cell.values["model.width"]
        pause(cell, {1: 2.0, 2: 2.0, 4: 3.0, 5: 2.0 if width == 8 else 3.0}[n])
        if n < 4:
            finish(cell, loss_1=2.0 - 0.3 * (n == 2) - 0.001 * (width == 16) + 0.01 * cell.seed * n)
    report = build_report(spec, cells)
    assert [group.label for group in report.stopped] == [
        *("width=8 n_future=4", "width=16 n_future=4", "width=16 n_future=5"),
    ]
    found = verdict(report)
    assert found.best is not None
    assert (found.best.label, found.json()["best_of"]) == ("width=16 n_future=2", 3)
    assert found.among is not None
    assert found.difference is not None
    assert found.difference.interval is not None
    assert found.among.low < found.difference.interval.low


def test_the_file_may_say_what_is_better(tmp_path: Path) -> None:
    report = filled(tmp_path, {**LOSSES, (4, 0): 9.0})
    turned = replace(report, spec=replace(report.spec, better={"val/loss/head_1": "higher"}))
    assert verdict(turned).sentence.startswith(
        "No difference beyond the spread over 2 seeds (4.5962): n_future=4 has the highest"
    )
    assert "val/loss/head_1 ↑" in markdown(turned)


def test_one_common_seed_says_nothing_about_the_spread(tmp_path: Path) -> None:
    losses = {(1, 0): 1.0, (1, 1): 1.01, (2, 1): 0.9, (2, 2): 0.91}
    sentence = verdict(filled(tmp_path, losses, GRID.replace("[0, 1]", "[0, 1, 2]"))).sentence
    assert "with one common seed nothing is known about the spread" in sentence


def test_cells_without_a_value_make_it_provisional(tmp_path: Path) -> None:
    report = filled(tmp_path, LOSSES)
    group = report.groups[-1]
    cut = replace(group, results={seed: dict(m) for seed, m in group.results.items()})
    del cut.results[0]["val/loss/head_1"]  # type: ignore[attr-defined]
    found = verdict(replace(report, groups=[*report.groups[:-1], cut]))
    assert "Provisional: 1 of 6 cells have no val/loss/head_1." in found.sentence
    assert (found.provisional, found.json()["cells_without_value"]) == (True, 1)


def test_the_json_is_the_sentence_in_numbers(tmp_path: Path) -> None:
    found = verdict(three_seeds(tmp_path))
    value = json.loads(json.dumps(found.json(), allow_nan=False))
    start = {"grid": "head-count", "sentence": found.sentence, "outcome": "no difference", "is_difference": False}
    start |= {"provisional": False, "metric": "val/loss/head_1", "direction": "lower", "at": None}
    assert {key: value[key] for key in start} == start
    best = {key: value["best"][key] for key in ("setting", "is_baseline", "mean", "seeds")}
    assert best == {"setting": "n_future=2", "is_baseline": False, "mean": pytest.approx(1.75), "seeds": 3}
    assert value["compared_with"] == value["baseline"]
    assert (value["baseline"]["setting"], value["baseline"]["is_baseline"]) == ("n_future=1", True)
    assert value["difference"] == {"mean": pytest.approx(-0.375), "sd": pytest.approx(0.125), "seeds": 3}
    ends = {"low": pytest.approx(-0.685517214), "high": pytest.approx(-0.064482786)}
    assert value["interval"] == {**ends, "level": 0.95, "method": "t"}
    among = {"low": pytest.approx(-0.8228, abs=1e-4), "high": pytest.approx(0.0728, abs=1e-4)}
    assert (value["best_of"], value["interval_best_of"]) == (2, {**among, "level": 0.95, "method": "Bonferroni"})
    assert (value["spread"], value["missing"], value["warnings"]) == (None, [], [])


def test_the_json_of_two_seeds_has_a_spread_and_no_interval(tmp_path: Path) -> None:
    value = verdict(filled(tmp_path)).json()
    assert (value["outcome"], value["is_difference"], value["interval"]) == ("no difference", False, None)
    assert value["spread"] == pytest.approx(math.sqrt(0.045))


@pytest.mark.parametrize(("settings", "seeds"), [(2, 2), (3, 2), (3, 3), (6, 3), (3, 5)])
def test_equal_settings_are_seldom_told_apart(settings: int, seeds: int, tmp_path: Path) -> None:
    """What is called a difference although there is none: in no more than one grid of twenty."""
    numbers, run = [*range(1, settings + 1)], [*range(seeds)]
    text = GRID.replace("[1, 2, 4]", str(numbers)).replace("[0, 1]", str(run))
    losses, chance, told = {(n, seed): 1.0 for n in numbers for seed in run}, random.Random(0), 0
    report = filled(tmp_path, losses, text)
    for _ in range(400):
        drawn = [
            replace(group, results={seed: {"val/loss/head_1": chance.gauss(1, 0.1)} for seed in run})
            for group in report.groups
        ]
        told += verdict(replace(report, groups=drawn)).is_difference is True
    assert told <= 0.07 * 400, "three standard errors of one in twenty"


def test_the_json_of_a_baseline_that_is_the_best_compares_it_with_the_next(tmp_path: Path) -> None:
    value = verdict(filled(tmp_path, VERDICTS["baseline"][0])).json()
    assert (value["baseline"], value["best"]["is_baseline"]) == (value["best"], True)
    assert (value["compared_with"]["setting"], value["compared_with"]["is_baseline"]) == ("n_future=2", False)


def test_the_json_names_what_is_missing_and_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    losses = {key: math.inf if key[0] == 1 else loss for key, loss in LOSSES.items() if key != (4, 1)}
    value = json.loads(json.dumps(verdict(filled(tmp_path, losses)).json(), allow_nan=False))
    assert (value["provisional"], value["missing"]) == (True, ["n_future=4 seed=1 (missing)"])
    assert (value["baseline"]["setting"], value["baseline"]["mean"]) == ("n_future=1", None)
    assert (value["compared_with"]["setting"], value["not_finite"]) == ("n_future=4", ["n_future=1"])
    assert (value["is_difference"], value["outcome"]) == (None, "unknown spread")


OUTCOMES = {
    "better": Outcome.BEYOND_SPREAD,
    "within": Outcome.NO_DIFFERENCE,
    "tie": Outcome.NO_DIFFERENCE,
    "one seed": Outcome.UNKNOWN_SPREAD,
    "alone": Outcome.ONE_SETTING,
    "others diverged": Outcome.ONE_FINITE,
    "all diverged": Outcome.NOT_FINITE,
}


@pytest.mark.parametrize(("case", "outcome"), OUTCOMES.items())
def test_programs_read_the_outcome_and_not_the_sentence(tmp_path: Path, case: str, outcome: Outcome) -> None:
    assert verdict(filled(tmp_path, VERDICTS[case][0])).json()["outcome"] == outcome.value
