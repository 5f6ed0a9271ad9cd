"""Runs recorded through MLflow's server: several at once, and one whose server is killed in mid-run."""

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from servers import MlflowServer, postgres, why_no_postgres
from test_tracking_fakes import fresh_store

from mtp_lightning.tracking.journal import JOURNAL
from mtp_lightning.tracking.logger import RUN_FILE, MLflowRunLogger
from mtp_lightning.tracking.read import history, read_run
from mtp_lightning.tracking.store import connect, sqlite_file

WORKERS, STEPS = 4, 200


def write_many(uri: str, directory: str, offset: float) -> None:
    logger = MLflowRunLogger(uri, "mtp/many", directory=directory, system_metrics=False, flush_every_seconds=0.05)
    for step in range(STEPS):
        logger.log_metrics({"a": step + offset, "b": float(step), "c": float("nan")}, step)
        time.sleep(0.005)  # a step each, so that the workers' writes meet
    logger.finalize("success")


def run_of(folder: Path) -> str:
    return (folder / RUN_FILE).read_text().strip()


@pytest.mark.slow
@pytest.mark.skipif(why_no_postgres() is not None, reason=str(why_no_postgres()))
def test_four_workers_on_a_server_with_postgres_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([MLflowRunLogger.__module__])  # what takes its time to load, once
    with postgres() as database, MlflowServer(database, tmp_path) as server:
        folders = {1000.0 * i: tmp_path / str(i) for i in range(WORKERS)}
        writers = [context.Process(target=write_many, args=(server.uri, str(f), o)) for o, f in folders.items()]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(timeout=240)
            assert writer.exitcode == 0
        for offset, folder in folders.items():
            points = history(server.uri, run_of(folder), ["a", "b", "c"])
            assert points["a"] == [(step, step + offset) for step in range(STEPS)]
            assert [step for step, _ in points["b"]] == [step for step, _ in points["c"]] == list(range(STEPS))
            assert read_run(server.uri, run_of(folder)).status == "FINISHED"
        send_again(server.uri, run_of(folders[0.0]))


def send_again(uri: str, run_id: str) -> None:
    """As after a server that wrote and died before it said so: PostgreSQL keeps one of the two, as SQLite does."""
    client = connect(uri)
    client.log_batch(run_id, metrics=[m for key in ("a", "c") for m in client.get_metric_history(run_id, key)])
    assert {key: len(found) for key, found in history(uri, run_id, ["a", "c"]).items()} == {"a": STEPS, "c": STEPS}


def until(condition: Callable[[], bool], run: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert run.poll() is None, run.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def recorded_losses(store: str) -> int:
    with closing(sqlite3.connect(f"file:{sqlite_file(store)}?mode=ro", uri=True)) as database:
        return int(database.execute("select count(*) from metrics where key = 'train/loss'").fetchone()[0])


@pytest.mark.slow
def test_a_server_killed_in_mid_run_costs_nothing(folder: Path) -> None:
    steps, run_folder = 200, folder / "runs" / "fit"
    store = fresh_store(folder / "store")
    command = [sys.executable, "-m", "mtp_lightning", "fit", "-c", "conf/base.yaml", "-c", "tiny.yaml"]
    command += ["--trainer.val_check_interval=50"]
    with MlflowServer(store, folder) as server:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": server.uri}
        with subprocess.Popen(
            [*command, f"--trainer.max_steps={steps}"],
            cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as run:  # fmt: skip
            until(lambda: recorded_losses(store) > 20, run)
            server.kill()
            until((run_folder / JOURNAL).is_file, run)  # of a checkpoint that was made without the server
            server.start()
            _, said = run.communicate(timeout=240)
        assert run.returncode == 0, said[-3000:]
        assert "MLflow does not answer" in said
        assert "training goes on" in said
        assert recorded_losses(store) == steps
        points = history(server.uri, run_of(run_folder), ["train/loss", "val/loss/head_1"])
        assert [step for step, _ in points["train/loss"]] == list(range(1, steps + 1))
        assert [step for step, _ in points["val/loss/head_1"]] == list(range(50, steps + 1, 50))
        run_record = read_run(server.uri, run_of(run_folder))
        assert (run_record.status, run_record.tags["mtp.attempt"]) == ("FINISHED", "1")
    assert not (run_folder / JOURNAL).exists()
    assert not (folder / "runs" / "mlflow.db").exists()
