"""Runs on two nodes whose names nobody can resolve: a Slurm cluster of two nodes on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from slurm_cluster import Cluster, running_cluster

from mtp_lightning.cli import main
from mtp_lightning.grid.run.attempts import read_attempts

pytestmark = pytest.mark.slow
STEPS = 12
SEEN = """
import json, os, time
import lightning.pytorch as pl

class Seen(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        time.sleep(0.2)
        with open(f"{trainer.default_root_dir}/seen-{trainer.global_rank}", "w") as file:
            json.dump([os.environ["SLURMD_NODENAME"], trainer.world_size, trainer.num_nodes], file)
"""
GRID = """
name: nodes
configs: [conf/base.yaml, tiny.yaml, {strategy}seen.yaml]
overrides: {{trainer.max_steps: 12, trainer.val_check_interval: 6, trainer.accelerator: cpu}}
axes: {{model.heads.n_future: [2]}}
compare: [val/loss/head_1]
resources: {{nodes: 2, cpus: 1}}
"""


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from running_cluster(tmp_path_factory.mktemp("two_nodes"), cpus=1, nodes=2)


@pytest.fixture
def cluster(two_nodes: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, two_nodes.environment[name])
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[2]}")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    (folder / "seen.py").write_text(SEEN)
    (folder / "seen.yaml").write_text("trainer: {callbacks+: [{class_path: seen.Seen}]}\n")
    yield two_nodes
    two_nodes.clear()


def submit(runs: str) -> None:
    assert main(["grid", "submit", "grid.yaml", "--runs", runs]) == 0


def finished(folder: Path, runs: str) -> Path:
    """The cell's folder, once its run is over."""
    (folder / "status.json").unlink(missing_ok=True)
    assert main(["grid", "status", "grid.yaml", "--runs", runs, "--watch", "--json", "status.json"]) == 0
    (row,) = json.loads((folder / "status.json").read_text())["cells"]
    logs = "\n".join(path.read_text() for path in (folder / runs).glob("submissions/*/*_log.*"))
    assert (row["state"], row["step"]) == ("finished", STEPS), f"{row}\n{logs}"
    return Path(row["directory"])


def weights(cell: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(cell / f"checkpoints/step-{STEPS:08}.ckpt", weights_only=True)
    return found["state_dict"]  # type: ignore[return-value]


@pytest.mark.parametrize("strategy", ["", "fsdp2", "zero2"])
def test_a_cell_of_two_nodes_is_one_run(cluster: Cluster, folder: Path, strategy: str) -> None:
    (folder / "grid.yaml").write_text(GRID.format(strategy=f"conf/strategy/{strategy}.yaml, " if strategy else ""))
    submit("runs")
    cell = finished(folder, "runs")
    seen = [json.loads((cell / f"seen-{rank}").read_text()) for rank in range(2)]
    assert seen == [["node0", 2, 2], ["node1", 2, 2]]


def test_a_node_is_lost_in_mid_run_and_the_weights_are_those_of_an_undisturbed_run(
    cluster: Cluster, folder: Path
) -> None:
    (folder / "grid.yaml").write_text(GRID.format(strategy=""))
    submit("undisturbed")
    expected = weights(finished(folder, "undisturbed"))
    submit("disturbed")
    steps = lambda: [json.loads(p.read_text())["step"] for p in folder.glob("disturbed/*/progress.json")]  # noqa: E731
    cluster.until(lambda: any(step >= 8 for step in steps()), 240)
    cluster.kill_node("node1")
    cluster.until(lambda: "RUNNING" not in cluster.jobs().values(), 120)
    cluster.start_node("node1")
    cluster("scontrol", "update", "nodename=node1", "state=resume", check=False)  # refused where it is back by itself
    cell = finished(folder, "disturbed")
    cluster.until(lambda: not cluster.jobs())
    assert [attempt["attempt"] for attempt in read_attempts(cell)] == [1, 2]
    got = weights(cell)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
