"""A grid's chart view in a real browser: MLflow does not document the format, so its own pages are the judge."""

import html
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from servers import MlflowServer
from test_tracking_fakes import fresh_store

from mtp_lightning.grid.report.forms.mlflow_page import record_charts
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.tracking.logger import MLflowRunLogger
from mtp_lightning.tracking.store import connect
from mtp_lightning.tracking.ui import find_experiment, links
from mtp_lightning.tracking.views import TESTED_MLFLOW

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXIS = "model.heads.n_future"
SPEC = GridSpec(
    path=Path("grid.yaml"),
    name="head-count",
    configs=(),
    axes={AXIS: (1, 4), "model.heads.match": ("parameters",)},
    seeds=tuple(range(6)),
    compare=("val/loss/head_1", "val/bits_per_byte"),
)
SECONDS_ON_THE_PAGE = 40
"""Of the page's own clock, which stands still while it waits for the network."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no browser: apt-get install chromium")


def write_cell(uri: str, folder: Path, n: int, seed: int) -> None:
    tags = {"mtp.kind": "cell", "mtp.grid": SPEC.name, "mtp.group": f"n_future={n}", "mtp.baseline": str(n == 1)}
    name = f"n_future={n} seed={seed}"
    logger = MLflowRunLogger(uri, f"mtp/{SPEC.name}", name, str(folder / name), tags, system_metrics=False)
    logger.log_hyperparams({"model": {"heads": {"n_future": n, "match": "parameters"}}, "seed_everything": seed})
    for step in range(0, 101, 10):
        loss = 4 * math.exp(-step / 40) + n / 10 + seed / 50
        logger.log_metrics({"train/loss": loss, "val/loss/head_1": loss, "val/bits_per_byte": loss / 2}, step)
    logger.finalize("success")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    """Twelve cells, more than MLflow shows unasked, in two groups, and the run of a report."""
    uri = fresh_store(tmp_path)
    record_charts(uri, SPEC)
    for n in (1, 4):
        for seed in SPEC.seeds:
            write_cell(uri, tmp_path, n, seed)
    client, experiment = connect(uri), find_experiment(uri, f"mtp/{SPEC.name}")
    report = client.create_run(experiment.experiment_id, run_name="report", tags={"mtp.kind": "grid"})
    client.set_terminated(report.info.run_id)
    with MlflowServer(uri, tmp_path) as running:
        yield running


def opened(url: str, folder: Path) -> str:
    """The page as it is when it has come to rest; a picture of it is left in `folder`."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'browser'}", "--window-size=2400,1900"]
    command += [f"--virtual-time-budget={SECONDS_ON_THE_PAGE * 1000}", f"--screenshot={folder / 'view.png'}"]
    done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def texts(page: str) -> list[str]:
    """Every piece of text between two tags, as it is read."""
    return [html.unescape(piece).strip() for piece in re.findall(r">([^<]+)<", page) if piece.strip()]


@pytest.mark.slow
def test_one_link_opens_the_comparison_ready_made(server: MlflowServer, tmp_path: Path) -> None:
    link, plain = links(server.uri, find_experiment(server.uri, f"mtp/{SPEC.name}"))
    assert link == f"{plain}&viewStateShareKey=mtp-head-count"
    page = opened(link, tmp_path)
    shown = texts(page)
    made_for = f"views were tried with MLflow {TESTED_MLFLOW}, this is {mlflow.__version__}"
    # a line and bars of each metric that is compared; one against the other; parameters; then MLflow's own of the rest
    for title, charts in (("Comparison", 2), ("By step", 2), ("Last values", 2), ("train", 1)):
        assert f"({charts})" == shown[shown.index(title) + 1], made_for
    assert page.count("js-plotly-plot") == 6, made_for  # parallel coordinates are drawn by something else
    for section, end in (("By step", "Last values"), ("Last values", "train")):
        charts_shown = shown[shown.index(section) : shown.index(end)]
        assert {"val/loss/head_1", "val/bits_per_byte"} <= set(charts_shown)
    assert {"val/bits_per_byte vs. val/loss/head_1", "Parallel Coordinates"} <= set(shown)
    assert "n_future=4 (val/loss/head_1)" in shown, "a line is a group"
    # cells alone, all of them, seeds together
    assert (shown.count("Hide run"), shown.count("Unhide run")) == (12, 0)
    assert [name for name in shown if name.startswith("Group: ")] == ["Group: n_future=1", "Group: n_future=4"]
    assert "report" not in shown
    # the parameter is a scale, on which there are values between those of the cells
    assert {"1.0", "2.5", "4.0"} <= set(shown[shown.index("Parallel Coordinates") : shown.index("By step")])
    assert (tmp_path / "view.png").stat().st_size > 100_000, "an empty page"
