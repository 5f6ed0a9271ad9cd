"""A house in miniature around the grid: a configuration, a resolver that knows its keys, a `fit` made of files, and an
MLflow that only remembers."""

import copy
import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mtp_lightning.config import cell as config_cell
from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.config.run_size import Size
from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.grid import commands
from mtp_lightning.grid.report.comparison import Report
from mtp_lightning.grid.report.forms import mlflow_page
from mtp_lightning.grid.run.display import Line
from mtp_lightning.grid.run.launch import LaunchResult, LocalLauncher
from mtp_lightning.grid.run.state import Result, cell_state
from mtp_lightning.grid.spec.cells import Cell, expand, load_cells
from mtp_lightning.grid.spec.grid_spec import GridSpec, read_grid
from mtp_lightning.tracking import read as tracking

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {"heads": {"n_future": 1, "match": "parameters"}, "n_layers": 4, "width": 32},
    "optimizer": {"lr": 0.001},
    "data": {"init_args": {"directory": "/shards", "num_workers": 2, "corpus": "stdlib", "seed": 0}},
    "trainer": {
        "max_steps": 10,
        "val_check_interval": 1,
        "logger": None,
        "callbacks": None,
        "devices": 1,
        "default_root_dir": None,
    },
}

GRID = """\
name: head-count
configs: [base.yaml]
overrides: {trainer.max_steps: 5}
axes:
  model.heads.n_future: [1, 2, 4]
seeds: [0, 1]
baseline: {model.heads.n_future: 1}
compare: [val/loss/head_1, decode/speedup]
"""

ONE = GRID.replace("[1, 2, 4]", "[1]").replace("[0, 1]", "[0]")
"""The same with a single cell."""
DONE = "progress(5); finish()"
"""The fake run that goes well."""


class FakeResolver(Resolver):
    """Resolves `CONFIG` without Lightning."""

    def __init__(self, cache: Path | None = None) -> None:
        pass

    def __call__(self, configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
        return resolve(configs, overrides)

    def check_keys(self, configs: Sequence[Path], overrides: Mapping[str, Any]) -> None:
        wrong = []
        for key, value in overrides.items():
            try:
                _merged(configs, {key: value})
            except InputError as error:
                wrong.append(str(error))
        if wrong:
            raise InputError("\n".join(wrong))

    def measure(self, config: Mapping[str, Any]) -> Size:
        """1000 parameters a layer, 100 tokens a step."""
        model, steps = config["model"], config["trainer"]["max_steps"]
        parameters, memory = 1000 * model["n_layers"], 16000 * model["n_layers"]
        flops = 6 * parameters * model["heads"]["n_future"]
        return Size(parameters, parameters, flops, 100 * steps, memory, 2 * memory)

    def remember(self) -> None:
        pass


def resolve(configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults, the files, the overrides; `data.init_args.seed` follows the seed as an interpolation would."""
    config = _merged(configs, overrides)
    if config["model"]["width"] < 1:
        raise InputError("model.width: must be at least 1")
    if config["model"]["heads"]["n_future"] < 1:
        raise InputError("model.heads.n_future: must be at least 1")
    if config["model"]["heads"]["n_future"] >= config["model"]["n_layers"] * 2:
        raise InputError("model.heads.n_future: too many for the layers (model.n_layers)")
    config["data"]["init_args"]["seed"] = config["seed_everything"]
    return config


def _merged(configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    for path in configs:
        _merge(config, yaml.safe_load(path.read_text()) or {}, path.name)
    for dotted, value in overrides.items():
        node = config
        *parents, last = dotted.split(".")
        for part in [*parents, last]:
            if part not in node:
                raise InputError(f"unknown key '{dotted}'{did_you_mean(part, node)}")
            node = node[part] if part != last else node
        node[last] = value
    return config


def _merge(config: dict[str, Any], more: Mapping[str, Any], name: str) -> None:
    for key, value in more.items():
        if key not in config:
            raise InputError(f"{name}: unknown key '{key}'{did_you_mean(key, config)}")
        if isinstance(value, Mapping) and isinstance(config[key], dict):
            _merge(config[key], value, name)
        else:
            config[key] = value


def grid_file(folder: Path, text: str = GRID, **files: str) -> Path:
    """The grid file in `folder`, beside an empty base.yaml and whatever else is given as name=text."""
    (folder / "base.yaml").write_text("")
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def first_problem(folder: Path, text: str) -> str:
    """`LINE: KEY: ...`, what a grid file of this text is refused by."""
    path = grid_file(folder, text)
    with pytest.raises(InputError) as caught:
        load_cells(path, FakeResolver(), folder)
    return str(caught.value).splitlines()[0].removeprefix(f"{path}:")


def cells_of(folder: Path, text: str = GRID, **files: str) -> list[Cell]:
    return expand(load_grid(grid_file(folder, text, **files)), FakeResolver(), folder / "runs")


def load_grid(path: Path) -> GridSpec:
    spec, problems = read_grid(path)
    if problems or spec is None:
        raise InputError("\n".join(problems))
    return spec


# What every fake run knows: `cell` (its folder), `config`, `n`, `seed`, and how to write its files.
PRELUDE = """
import json, os, signal, socket, sys, time, pathlib
cell = pathlib.Path(sys.argv[1])
text = (cell / "config.yaml").read_text()
n = int(text.split("n_future: ")[1].split()[0])
seed = int(text.split("seed_everything: ")[1].split()[0])
def write(name, **content):
    (cell / (name + ".new")).write_text(json.dumps(content))
    (cell / (name + ".new")).rename(cell / name)
def progress(step):
    write("progress.json", step=step, max_steps=5, phase="train", loss=3.5, tokens_per_second=1000,
          updated_at=time.time(), pid=os.getpid(), host=socket.gethostname())
def finish():
    metrics = {"val/loss/head_1": 1 + n / 10 + seed / 100, "decode/speedup": float(n)}
    write("result.json", state="finished", step=5, metrics=metrics, tokens=50, wall_seconds=0.1, data_fingerprint="d")
(cell / "starts").open("a").write(f"{os.getpid()} {time.time()}\\n")
"""


def command(script: str, folder: Path) -> list[str]:
    """What runs `script` after the prelude, in a bare interpreter for speed."""
    return [sys.executable, "-S", "-E", "-c", PRELUDE + script, str(folder)]


class FakeTracking:
    """In the place of MLflow: it holds one curve for every run; `recorded` has the files of each report, `uris` and
    `folders` where it was recorded, `charts` the grids whose charts were prepared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[list[str]] = []
        self.uris: list[str] = []
        self.folders: list[str | None] = []
        self.charts: list[str] = []

        def read_run(uri: str, run_id: str) -> Any:
            return SimpleNamespace(metrics=self.metrics(run_id))

        def history(uri: str, run_id: str, keys: Sequence[str]) -> Mapping[str, Sequence[tuple[int, float]]]:
            return {key: self.history(run_id, key) for key in keys}

        def record_report(uri: str, report: Report, files: Sequence[Path], folder: str | None = None) -> None:
            self.uris.append(uri)
            self.folders.append(folder)
            self.record(report, files)

        monkeypatch.setattr(tracking, "read_run", read_run)
        monkeypatch.setattr(tracking, "history", history)
        monkeypatch.setattr(mlflow_page, "record_report", record_report)
        monkeypatch.setattr(mlflow_page, "record_charts", lambda uri, spec: self.charts.append(spec.name))

    def metrics(self, run_id: str) -> Mapping[str, float]:
        return {}

    def history(self, run_id: str, key: str) -> Sequence[tuple[int, float]]:
        return [(0, 3.0), (5, 1.0)]

    def record(self, report: Report, files: Sequence[Path]) -> None:
        self.recorded.append([path.name for path in files])


class FakeHouse:
    """In the place of the rest of the house, for the commands of a grid. `script` is what its cells run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: str = DONE) -> None:
        self.script = script
        self.tracking = FakeTracking(monkeypatch)
        monkeypatch.setattr(commands, "Resolver", FakeResolver)
        monkeypatch.setattr(config_cell, "fit_command", lambda file: command(self.script, file.parent))
        monkeypatch.setattr(sys, "argv", ["mtp"])


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> FakeHouse:
    return FakeHouse(monkeypatch)


def run_id(name: str) -> str:
    """Such as MLflow gives, always the same for a name."""
    return hashlib.md5(name.encode()).hexdigest()


def starts(cell: Cell) -> int:
    """How many times the cell's fake run was started."""
    path = cell.directory / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def finish(cell: Cell, step: int = 5, fingerprint: str | None = "d", **metrics: float) -> None:
    """Write a result; `loss_1=..` stands for val/loss/head_1, `speedup` for decode/speedup, others by name."""
    names = {"speedup": "decode/speedup", "memory": "perf/peak_memory_bytes", "parameters": "model/parameters"}
    full = {names.get(key, key.replace("loss_", "val/loss/head_")): value for key, value in metrics.items()}
    cell.directory.mkdir(parents=True, exist_ok=True)
    Result(step=step, metrics=full, data_fingerprint=fingerprint).write(cell.directory)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


class Silent:
    """A display that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.lines: list[Line] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, lines: Sequence[Line], seconds_left: float | None) -> None:
        self.lines = list(lines)

    def close(self) -> None:
        pass


def launch(
    cells: Sequence[Cell], script: str = DONE, workers: int = 2, display: Silent | None = None, **more: Any
) -> tuple[LaunchResult, Silent]:
    display = display or Silent()
    with pytest.MonkeyPatch.context() as patch:
        FakeHouse(patch, script)
        return LocalLauncher(display, workers, interval=0.02, **more).launch(cells), display


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def states(cells: Sequence[Cell]) -> list[str]:
    return [cell_state(cell.directory).value for cell in cells]
