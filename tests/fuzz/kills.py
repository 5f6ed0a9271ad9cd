"""SIGKILL at random moments: of single runs, of one rank of two, of a grid's runner and its cells. What is left must go
on as if nothing had been: final weights and every point in MLflow equal those of a run that was left alone.

    python tests/fuzz/kills.py [--kills 50] [--seed 0]

Moments are spread evenly over what a command does from its first line to its last: start, steps, checkpoints,
validations, MLflow's writes, the end.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("e2e", "unit")]

from processes import environment  # noqa: E402
from small_runs import make_folder  # noqa: E402

from mtp_lightning.checkpoints.select import find_checkpoint  # noqa: E402
from mtp_lightning.tracking.read import history, read_run  # noqa: E402
from mtp_lightning.tracking.store import default_tracking_uri  # noqa: E402

FIT = ["fit", "-c", "conf/base.yaml", "-c", "small.yaml", "--trainer.max_steps", "60", "--trainer.val_check_interval",
       "5", "--trainer.callbacks.every_n_steps=4", "--ckpt_path", "auto"]  # fmt: skip
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
GRID = """\
name: killed
configs: [conf/base.yaml, small.yaml]
overrides: {trainer.max_steps: 40, trainer.val_check_interval: 5}
axes: {model.heads.n_future: [1, 2]}
seeds: [0, 1]
baseline: {model.heads.n_future: 1}
compare: [val/loss/head_1]
"""
ATTEMPTS = 20
"""Of one run, at most: a run that has not ended by then never gets on."""


def started(folder: Path, args: Sequence[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mtp_lightning", *args]
    log = (folder / "log").open("ab")
    return subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True)


def one_of(process: "subprocess.Popen[bytes]", chance: random.Random) -> None:
    """Kill the process, or one of those that it started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    chance.choice(family).kill()


def itself(process: "subprocess.Popen[bytes]", chance: random.Random) -> None:
    process.kill()


def killed_until_done(
    folder: Path,
    args: Sequence[str],
    chance: random.Random,
    budget: int,
    seconds: float,
    kill: Callable[["subprocess.Popen[bytes]", random.Random], None],
) -> int:
    """Start the command, kill it at a random moment and start it again, `budget` times at most; then let it end.

    Args:
        seconds: that it takes when it is left alone.
    """
    kills = 0
    for _ in range(ATTEMPTS):
        process = started(folder, args)
        if kills < budget:
            wait = chance.uniform(0, seconds)
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                kill(process, chance)
                kills += 1
                try:  # the others of its family end by themselves, or are ended as a machine that reboots would
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    print("  the others did not end by themselves within 30 s", flush=True)
        status = process.wait(600)
        if status == 0:
            return kills
        _end_group(process.pid)
    end = (folder / "log").read_text(errors="replace")[-3000:]
    raise AssertionError(f"not done after {ATTEMPTS} attempts, the last with status {status}: {end}")


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    time.sleep(0.2)


def record(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, list[tuple[int, float]]]]:
    """(final weights, MLflow's points of everything that is not about time)."""
    uri = default_tracking_uri(run.parent)
    run_id = (run / "mlflow_run_id").read_text().strip()
    found = read_run(uri, run_id)
    assert found.status == "FINISHED", f"{run}: MLflow says {found.status}"
    keys = [key for key in found.metrics if key.startswith(("train/", "val/", "model/"))] + ["perf/tokens_seen"]
    weights = torch.load(find_checkpoint(run), weights_only=True)["state_dict"]
    return weights, history(uri, run_id, sorted(keys))


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs, a line each."""
    (weights, points), (its_weights, its_points) = record(whole), record(killed)
    wrong = [f"{killed.name}: weight {name}" for name in weights if not torch.equal(weights[name], its_weights[name])]
    wrong += [
        f"{killed.name}: {key}: {its_points.get(key)} for {points.get(key)}"
        for key in points.keys() | its_points.keys()
        if points.get(key) != its_points.get(key)
    ]
    return wrong


def single(folder: Path, chance: random.Random, budget: int, flags: Sequence[str], name: str) -> tuple[int, list[str]]:
    """Runs, one after the other, until so many kills have been."""
    kill = one_of if flags else itself
    began = time.monotonic()
    assert started(folder, [*FIT, *flags, "--trainer.default_root_dir", f"runs/{name}"]).wait() == 0
    seconds = time.monotonic() - began
    kills, wrong, number = 0, [], 0
    while kills < budget:
        number += 1
        run = f"runs/{name}-{number}"
        args = [*FIT, *flags, "--trainer.default_root_dir", run]
        kills += killed_until_done(folder, args, chance, min(8, budget - kills), seconds, kill)
        wrong += compare(folder / "runs" / name, folder / run)
    return kills, wrong


def grid(folder: Path, chance: random.Random, budget: int) -> tuple[int, list[str]]:
    """The runner of a grid is killed, its cells go on or not; the next one takes over."""
    (folder / "grid.yaml").write_text(GRID)
    args = ["grid", "run", "grid.yaml", "--workers", "2"]
    began = time.monotonic()
    assert started(folder, [*args, "--runs", "whole"]).wait() == 0
    seconds = time.monotonic() - began
    cells = sorted(path.parent for path in (folder / "whole").glob("*/result.json"))
    assert len(cells) == 4
    kills, wrong, number = 0, [], 0
    while kills < budget:
        number += 1
        runs = f"runs-{number}"
        kills += killed_until_done(folder, [*args, "--runs", runs], chance, budget - kills, seconds, one_of)
        wrong += [line for cell in cells for line in compare(cell, folder / runs / cell.name)]
    return kills, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="6 of 10 of single runs, 2 of ranks, 2 of grids")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance, wrong = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder)
        for what, attack in (
            ("single runs", lambda n: single(folder, chance, n, [], "one")),
            ("ranks", lambda n: single(folder, chance, n, TWO, "two")),
            ("a grid", lambda n: grid(folder, chance, n)),
        ):
            share = args.kills * (6 if what == "single runs" else 2) // 10
            kills, found = attack(share)
            print(f"{what}: seed {args.seed}, {kills} kills, {len(found)} differences", *found, sep="\n  ", flush=True)
            wrong += found
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
