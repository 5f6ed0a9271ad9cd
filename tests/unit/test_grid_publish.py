"""A report in all its forms, and in none where there is nothing to report."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_grid_fakes import FakeTracking, cells_of, finish, load_grid

from mtp_lightning.errors import InputError
from mtp_lightning.grid.report.comparison import Report
from mtp_lightning.grid.report.forms.publish import FILES, RECORD, Published, publish
from mtp_lightning.grid.run.state import Progress, State, Status


def published(folder: Path, uri: str = "sqlite:///none.db", again: bool = True) -> tuple[Published, list[Report]]:
    shown: list[Report] = []
    cells, spec = cells_of(folder), load_grid(folder / "grid.yaml")
    return publish(uri, spec, cells, folder / "out", again, shown.append), shown


def finish_all(folder: Path, **metrics: float) -> None:
    for cell in cells_of(folder):
        finish(cell, **{"loss_1": 1.0 + cell.seed, "speedup": 2.0, **metrics})


def test_every_form_is_written_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = FakeTracking(monkeypatch)
    finish_all(tmp_path)
    found, shown = published(tmp_path)
    assert found.problems == ()
    assert shown == [found.report]
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, RECORD])
    assert [sorted(names) for names in tracking.recorded] == [sorted(FILES)]
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["sentence"] in (out / "report.md").read_text()
    assert verdict["sentence"] in (out / "report.html").read_text()
    assert verdict["sentence"] == json.loads((out / RECORD).read_text())["verdict"]
    assert "data:image/png;base64,iVBORw0KGgo" in (out / "report.html").read_text()
    published(tmp_path, again=False)
    assert len(tracking.recorded) == 1, "nothing is missing, nothing has changed"
    (out / "report.html").unlink()
    published(tmp_path, again=False)
    assert (out / "report.html").is_file()


def test_files_for_programs_are_strict_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTracking(monkeypatch)
    finish_all(tmp_path, loss_1=float("nan"))
    published(tmp_path)

    def refuse(token: str) -> Any:
        raise AssertionError(token)

    for name in ("verdict.json", RECORD):
        json.loads((tmp_path / "out" / name).read_text(), parse_constant=refuse)


def test_a_grid_of_which_no_cell_ever_ran_has_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = FakeTracking(monkeypatch)
    cells = cells_of(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"grid\.yaml: no cell of the grid has run yet in '.*runs', .* grid run"):
        published(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert tracking.recorded == []
    cells[0].directory.mkdir(parents=True)
    Status(State.FAILED.value, 1, "here", 0.0, reason="out of luck").write(cells[0].directory)
    found, _ = published(tmp_path)
    assert found.report.missing[0] == "n_future=1 seed=0 (failed: out of luck)"


def test_a_running_cell_is_something_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTracking(monkeypatch)
    directory = cells_of(tmp_path)[3].directory
    directory.mkdir(parents=True)
    Progress(step=1, max_steps=5, phase="train").write(directory)
    found, _ = published(tmp_path)
    assert "n_future=2 seed=1 (running)" in found.report.missing


def test_what_cannot_be_written_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = FakeTracking(monkeypatch)
    finish_all(tmp_path)
    (tmp_path / "out" / "figure.png").mkdir(parents=True)
    found, shown = published(tmp_path)
    assert len(shown) == 1
    assert [problem.partition(":")[0] for problem in found.problems] == ["figure.png"]
    assert [sorted(names) for names in tracking.recorded] == [sorted(set(FILES) - {"figure.png"})]
    assert not (tmp_path / "out" / RECORD).exists(), "not all is in place"
    assert "data:image/png" not in (tmp_path / "out" / "report.html").read_text()


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTracking(monkeypatch)
    finish_all(tmp_path)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="out: cannot be written to: File exists"):
        published(tmp_path)


def test_a_figure_that_cannot_be_drawn_is_not_an_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = FakeTracking(monkeypatch)
    finish_all(tmp_path)
    published(tmp_path)

    def refuse(report: Report, curves: Any) -> bytes:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("mtp_lightning.grid.report.forms.figures.figure_png", refuse)
    found, _ = published(tmp_path)
    assert found.problems == ("figure.png: RuntimeError: no fonts",)
    assert "data:image/png" not in (tmp_path / "out" / "report.html").read_text()
    assert "figure.png" not in tracking.recorded[-1]


@pytest.mark.filterwarnings("ignore:.*noload:DeprecationWarning")  # MLflow 3.17 on SQLAlchemy 2.1
def test_in_a_real_store(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    finish_all(tmp_path)
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    found, _ = published(tmp_path, uri)
    assert found.problems == ()
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mtp/head-count")
    (run,) = client.search_runs([experiment.experiment_id])
    assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == sorted(FILES)
