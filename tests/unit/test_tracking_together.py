"""Several processes on one store, and where a run's code came from."""

import multiprocessing
import subprocess
from pathlib import Path

from mtp_lightning.tracking.logger import MLflowRunLogger
from mtp_lightning.tracking.provenance import git_tags, provenance, slurm_tags
from mtp_lightning.tracking.read import history
from mtp_lightning.tracking.store import default_tracking_uri


def write_many(uri: str, directory: str, offset: int) -> None:
    logger = MLflowRunLogger(uri, "mtp/many", directory=directory, system_metrics=False, flush_every_seconds=0.1)
    for step in range(60):
        logger.log_metrics({"a": float(step + offset), "b": float(step), "c": 1.0}, step)
    logger.finalize("success")


def test_four_processes_on_one_new_store_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([MLflowRunLogger.__module__])  # what takes its time to load, once
    uri = default_tracking_uri(tmp_path)
    folders = [tmp_path / str(i) for i in range(4)]
    writers = [context.Process(target=write_many, args=(uri, str(f), 1000 * i)) for i, f in enumerate(folders)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
        assert writer.exitcode == 0
    for i, folder in enumerate(folders):
        points = history(uri, (folder / "mlflow_run_id").read_text().strip(), ["a", "b", "c"])
        assert points["a"] == [(step, step + 1000.0 * i) for step in range(60)]
        assert len(points["b"]) == len(points["c"]) == 60


def test_git_tags_know_a_changed_tree(tmp_path: Path) -> None:
    def git(*args: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *args], cwd=tmp_path, check=True)

    assert git_tags(tmp_path) == {}
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    (tmp_path / "untracked").write_text("no change of the code")
    assert git_tags(tmp_path)["mtp.git_dirty"] == "false"
    (tmp_path / "a").write_text("2")
    assert git_tags(tmp_path)["mtp.git_dirty"] == "true"


def test_a_run_says_what_made_it() -> None:
    assert {"mtp.version.torch", "mtp.threads", "mtp.device", "mtp.python"} <= set(provenance())


def test_a_run_says_which_job_it_is() -> None:
    assert slurm_tags({}) == {}
    assert slurm_tags({"SLURM_JOB_ID": "17"}) == {"mtp.slurm_job": "17"}
    element = {"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0"}
    assert slurm_tags(element) == {"mtp.slurm_job": "17_0"}
