"""MLflow: nothing lost, nothing twice, whoever dies and however many write at once."""

import multiprocessing
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest

from mtp_lightning.errors import InputError
from mtp_lightning.tracking.logger import KeepRecord, MLflowRunLogger, flatten
from mtp_lightning.tracking.provenance import git_tags
from mtp_lightning.tracking.read import history, read_run
from mtp_lightning.tracking.store import connect, default_tracking_uri, ensure_experiment, ensure_store
from mtp_lightning.tracking.ui import experiment_url, find_experiment, serve


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its schema, which takes seconds to make."""
    runs = tmp_path_factory.mktemp("store")
    ensure_store(default_tracking_uri(runs))
    return runs / "mlflow.db"


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)


def make_logger(uri: str, tmp_path: Path, **changes: object) -> MLflowRunLogger:
    settings = {"directory": str(tmp_path / "cell"), "system_metrics": False, "flush_every_seconds": 1000.0}
    (tmp_path / "cell").mkdir(exist_ok=True)
    return MLflowRunLogger(uri, "mtp/test", **(settings | changes))  # type: ignore[arg-type]


def trainer_with(logger: MLflowRunLogger) -> Mock:
    return Mock(spec=pl.Trainer, loggers=[logger])


def test_metrics_go_out_in_batches(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = make_logger(uri, tmp_path)
    sizes: list[int] = []
    write = logger.client.log_batch

    def count(run_id: str, metrics: Sequence[object] = ()) -> None:
        sizes.append(len(metrics))
        write(run_id, metrics=metrics)

    monkeypatch.setattr(logger.client, "log_batch", count)
    for step in range(300):
        logger.log_metrics({"a": float(step), "b": -1.0, "c": 0.5}, step)
    logger.finalize("success")
    assert sum(sizes) == 900
    assert len(sizes) == 2
    assert history(uri, logger.run_id, ["a"])["a"] == [(step, float(step)) for step in range(300)]
    assert read_run(uri, logger.run_id).status == "FINISHED"


def test_a_restart_continues_the_run_and_repeats_no_step(uri: str, tmp_path: Path) -> None:
    first = make_logger(uri, tmp_path, tags={"mtp.grid": "g"})
    first.log_metrics({"loss": 3.0}, 1)
    first.log_metrics({"loss": 2.0, "val": 9.0}, 2)
    first.flush()
    first.log_metrics({"loss": 1.0}, 3)  # still in memory when the process is killed
    second = make_logger(uri, tmp_path)
    assert second.run_id == first.run_id
    assert read_run(uri, second.run_id).status == "RUNNING"
    for step, loss in ((2, 2.0), (3, 1.0), (4, 0.5)):
        second.log_metrics({"loss": loss}, step)
    second.log_metrics({"val": 8.0}, 4)
    second.finalize("success")
    points = history(uri, first.run_id, ["loss", "val", "nothing"])
    assert points == {"loss": [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)], "val": [(2, 9.0), (4, 8.0)]}
    assert read_run(uri, first.run_id).tags["mtp.attempt"] == "2"
    assert read_run(uri, first.run_id).tags["mtp.grid"] == "g"


def test_metrics_are_written_before_a_checkpoint_is(uri: str, tmp_path: Path) -> None:
    logger = make_logger(uri, tmp_path)
    logger.log_metrics({"loss": 3.0}, 1)
    assert history(uri, logger.run_id, ["loss"]) == {}
    KeepRecord().on_save_checkpoint(trainer_with(logger), Mock(spec=pl.LightningModule), {})
    assert history(uri, logger.run_id, ["loss"]) == {"loss": [(1, 3.0)]}


@pytest.mark.parametrize(
    ("exception", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError("wrong"), "FAILED"), (None, "FINISHED")]
)
def test_how_a_run_ended(uri: str, tmp_path: Path, exception: BaseException | None, status: str) -> None:
    logger = make_logger(uri, tmp_path)
    logger.log_metrics({"loss": 3.0}, 1)
    if exception:
        KeepRecord().on_exception(trainer_with(logger), Mock(spec=pl.LightningModule), exception)
    logger.finalize("failed" if exception else "success")
    assert read_run(uri, logger.run_id).status == status


def test_not_a_number_is_kept(uri: str, tmp_path: Path) -> None:
    logger = make_logger(uri, tmp_path)
    logger.log_metrics({"loss": float("nan")}, 1)
    logger.finalize("success")
    ((step, value),) = history(uri, logger.run_id, ["loss"])["loss"]
    assert step == 1
    assert value != value


def test_a_name_mlflow_does_not_take_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metric 'pass@1'"):
        make_logger(uri, tmp_path).log_metrics({"pass@1": 1.0}, 1)


def test_parameters_are_flat_and_for_good(uri: str, tmp_path: Path) -> None:
    logger = make_logger(uri, tmp_path)
    config = {"model": {"heads": {"n_future": 4}, "betas": [0.9, 0.95], "empty": {}}, "note": "x" * 7000}
    logger.log_hyperparams(config)
    params = read_run(uri, logger.run_id).params
    assert params["model.heads.n_future"] == "4"
    assert params["model.betas"] == "[0.9, 0.95]"
    assert len(params["note"]) == 6000
    make_logger(uri, tmp_path).log_hyperparams(config)
    with pytest.raises(InputError, match=r"model\.heads\.n_future is 2, but the run in '.*' was begun with 4"):
        make_logger(uri, tmp_path).log_hyperparams({"model": {"heads": {"n_future": 2}}})


def test_flatten() -> None:
    assert dict(flatten({"a": {"b": {"c": 1}}, "d": [1, 2]})) == {"a.b.c": 1, "d": [1, 2]}


def test_a_run_of_another_store_is_not_continued(uri: str, tmp_path: Path) -> None:
    logger = make_logger(uri, tmp_path)
    (tmp_path / "cell" / "mlflow_run_id").write_text("0123456789abcdef\n")
    with pytest.raises(InputError, match="does not hold the run"):
        logger.log_metrics({"loss": 1.0}, 1)


def write_many(uri: str, directory: str, offset: int) -> None:
    logger = MLflowRunLogger(uri, "mtp/many", directory=directory, system_metrics=False, flush_every_seconds=0.1)
    for step in range(60):
        logger.log_metrics({"a": step + offset, "b": step, "c": 1.0}, step)
    logger.finalize("success")


def test_four_processes_at_once_lose_nothing(uri: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    folders = [tmp_path / str(i) for i in range(4)]
    writers = [
        context.Process(target=write_many, args=(uri, str(folder), 1000 * i)) for i, folder in enumerate(folders)
    ]
    for folder, writer in zip(folders, writers):
        folder.mkdir()
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
        assert writer.exitcode == 0
    for i, folder in enumerate(folders):
        points = history(uri, (folder / "mlflow_run_id").read_text().strip(), ["a", "b", "c"])
        assert points["a"] == [(step, step + 1000.0 * i) for step in range(60)]
        assert len(points["b"]) == len(points["c"]) == 60


@pytest.mark.parametrize("wrong", ["./mlruns", "file:///tmp/mlruns"])
def test_file_stores_are_refused(wrong: str) -> None:
    with pytest.raises(InputError, match=r"give sqlite:////path/mlflow\.db"):
        connect(wrong)


def test_an_unwritable_folder_is_named() -> None:
    with pytest.raises(InputError, match="'/proc/runs' cannot be written to"):
        connect("sqlite:////proc/runs/mlflow.db")


def test_artifacts_lie_beside_the_database(uri: str, tmp_path: Path) -> None:
    logger = make_logger(uri, tmp_path)
    logger.log_text_artifact("x: 1\n", "config.yaml")
    (file,) = (tmp_path / "mlflow-artifacts" / "mtp" / "test").rglob("config.yaml")
    assert file.read_text() == "x: 1\n"


def test_git_tags_know_a_changed_tree(tmp_path: Path) -> None:
    def git(*args: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *args], cwd=tmp_path, check=True)

    assert git_tags(tmp_path) == {}
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    assert git_tags(tmp_path)["mtp.git_dirty"] == "false"
    (tmp_path / "a").write_text("2")
    assert git_tags(tmp_path)["mtp.git_dirty"] == "true"


def test_the_link_opens_an_experiments_charts() -> None:
    link = experiment_url(5000, "7")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/7/runs?")
    assert "compareRunsMode=CHART" in link


def test_the_ui_says_what_is_missing(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no runs are recorded"):
        find_experiment(default_tracking_uri(tmp_path / "elsewhere"), None)
    wanted = ensure_experiment(uri, "mtp/head-count")
    assert find_experiment(uri, "mtp/head-count") == wanted
    with pytest.raises(InputError, match="did you mean 'mtp/head-count'"):
        find_experiment(uri, "mtp/headcount")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="is taken"):
            serve(uri, wanted, taken.getsockname()[1], open_browser=False)
