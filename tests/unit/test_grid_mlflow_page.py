"""The report in a real MLflow store: one run, reused; artifacts; the note on the experiment."""

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_grid_fakes import GRID, cells_of, finish, load_grid
from test_tracking_fakes import fresh_store

from mtp_lightning.grid.report.comparison import Report, build_report
from mtp_lightning.grid.report.equal_training import COMMON, parse_at
from mtp_lightning.grid.report.forms.mlflow_page import NOTE, NOTE_LIMIT, note, record_report, write_report
from mtp_lightning.grid.report.forms.publish import variant


def report_of(folder: Path, text: str = GRID) -> Report:
    cells = cells_of(folder, text)
    for cell in cells:
        n = cell.values["model.heads.n_future"]
        finish(cell, **{f"loss_{i}": 1.0 + i / 10 for i in range(1, n + 1)})
    return build_report(load_grid(folder / "grid.yaml"), cells)


class FakeClient:
    """The few calls of `mlflow.MlflowClient` that are made, and what came of them."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.artifacts: list[tuple[str, str]] = []
        self.experiment_tags: dict[str, str] = {}
        self.filters: list[str] = []

    def _run(self, index: int) -> Any:
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=str(index)))

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        self.filters.append(filter_string)
        return [self._run(index) for index in range(len(self.runs))][:max_results]

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        self.runs.append({"name": run_name, **tags})
        return self._run(len(self.runs) - 1)

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self.artifacts.append((run_id, "/".join([*([folder] if folder else []), Path(path).name])))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[int(run_id)][key] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[int(run_id)]["status"] = status

    def set_experiment_tag(self, experiment: str, key: str, value: str) -> None:
        self.experiment_tags[key] = value


def test_the_second_report_reuses_the_run(tmp_path: Path) -> None:
    client, report = FakeClient(), report_of(tmp_path)
    for _ in range(2):
        write_report(client, "7", report, [tmp_path / "report.md", tmp_path / "figure.png"])
    (run,) = client.runs
    assert {key: run[key] for key in ("name", "mtp.kind", "mtp.grid", "status")} == {
        "name": "report",
        "mtp.kind": "grid",
        "mtp.grid": "head-count",
        "status": "FINISHED",
    }
    assert client.artifacts == [("0", "report.md"), ("0", "figure.png")] * 2
    assert client.filters[0] == "tags.`mtp.kind` = 'grid' and tags.`mtp.grid` = 'head-count'"
    assert client.experiment_tags["mlflow.note.content"] == note(report)


def test_a_report_at_a_budget_or_under_overrides_does_not_replace_the_file_s_own(tmp_path: Path) -> None:
    client, report = FakeClient(), report_of(tmp_path)
    write_report(client, "7", report, [tmp_path / "report.md"])
    noted = client.experiment_tags[NOTE], dict(client.runs[0])
    finish(report.cells[0], loss_1=9.0)
    other = build_report(report.spec, report.cells)
    assert note(other) != note(report)
    write_report(client, "7", other, [tmp_path / "report.md"], "step-100")
    assert client.artifacts == [("0", "report.md"), ("0", "step-100/report.md")]
    assert (client.experiment_tags[NOTE], client.runs[0]) == noted


def test_every_budget_and_every_override_has_a_name_of_its_own(tmp_path: Path) -> None:
    spec = report_of(tmp_path).spec
    budgets = ["step=300", "tokens=1e6", "flops=1.5e12", "step=1234567", "step=1234568", "tokens=0.1", "common"]
    assert [variant(spec, parse_at(text)) for text in budgets] == [
        *("step-300", "tokens-1e+06", "flops-1.5e+12", "step-1234567", "step-1234568", "tokens-0.1", "common")
    ]
    assert variant(spec, None) == ""
    name = variant(replace(spec, overridden={"trainer.max_steps": 6}), None)
    assert len(name) == 8
    assert variant(replace(spec, overridden={"trainer.max_steps": 6}), COMMON) == f"{name}-common"


def test_the_note_begins_with_one_line_and_fits_a_tag(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    first, _, rest = note(report).partition("\n\n")
    assert first.startswith("head-count: No difference beyond the spread")
    assert "val/loss/head_4" in rest
    large = report_of(tmp_path, GRID.replace("[1, 2, 4]", "[1, 2, 3, 4, 5, 6, 7]"))
    assert len(note(large)) <= NOTE_LIMIT


def test_the_note_names_what_is_missing_and_explains_the_table(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    (report.cells[-1].directory / "result.json").unlink()
    said = note(build_report(report.spec, report.cells))
    assert "\n\nincomplete: 1 of 6 cells missing: n_future=4 seed=1 (missing)\n\n" in said
    assert said.endswith("in brackets the difference to the baseline, by seed.\n")


def test_a_note_too_long_for_a_tag_keeps_the_compared_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(tmp_path)
    monkeypatch.setattr("mtp_lightning.grid.report.forms.mlflow_page.NOTE_LIMIT", len(note(report)) - 1)
    assert "val/loss/head_1 ↓" in note(report)
    assert "val/loss/head_4" not in note(report)
    monkeypatch.setattr("mtp_lightning.grid.report.forms.mlflow_page.NOTE_LIMIT", 20)
    assert len(note(report)) == 20


@pytest.mark.filterwarnings("ignore:.*noload:DeprecationWarning")  # MLflow 3.17 on SQLAlchemy 2.1
def test_in_a_real_store(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    report, file = report_of(tmp_path), tmp_path / "out" / "report.md"
    file.parent.mkdir()
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    for text in ("first", "second"):
        file.write_text(text)
        experiment = record_report(uri, report, [file])
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([experiment])
    assert run.info.run_name == "report"
    assert run.data.tags["mtp.kind"] == "grid"
    assert run.data.metrics == {}
    assert Path(client.download_artifacts(run.info.run_id, "report.md", str(tmp_path))).read_text() == "second"
    found = client.get_experiment(experiment)
    assert found.name == "mtp/head-count"
    assert found.tags["mlflow.note.content"] == note(report)


def test_runs_from_before_a_setting_had_its_name_are_drawn_with_the_later_ones(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri, report, file = fresh_store(tmp_path), report_of(tmp_path), tmp_path / "report.md"
    file.write_text("text")
    experiment = record_report(uri, report, [file])
    client = mlflow.MlflowClient(tracking_uri=uri)
    cell, other = report.cells[0].signature, "of another grid"
    runs = [
        client.create_run(experiment, tags={"mtp.kind": "cell", "mtp.cell": name, "mtp.group": "an old name"})
        for name in (cell, other)
    ]
    record_report(uri, report, [file])
    groups = [client.get_run(run.info.run_id).data.tags["mtp.group"] for run in runs]
    assert groups == [report.cells[0].group_label, "an old name"]
