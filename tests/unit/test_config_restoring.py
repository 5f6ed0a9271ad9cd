"""A run goes on from the last good checkpoint, whatever is wrong with the others and with its state files; what it
refuses is one message, and its folder stays as it was."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from damages import DAMAGES
from small_runs import SMALL, fit, make_folder

from mtp_lightning.cli import main
from mtp_lightning.grid.run.state import Progress

pytestmark = pytest.mark.filterwarnings("ignore:.*the last steps are not validated")
FLAGS = ("--model.schedule.kind=constant", "--trainer.callbacks.every_n_steps=2", "--ckpt_path=auto")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of four steps, and checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("restoring")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["mtp"])
        make_folder(folder)
        config = yaml.safe_load(SMALL)
        del config["trainer"]["logger"]
        (folder / "without.yaml").write_text(yaml.safe_dump(config))
        assert fit("runs/fit", *FLAGS[:2], "--trainer.max_steps=4") == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the working directory; `cp -r` makes all times of change anew."""
    shutil.copytree(finished, tmp_path / "copy", symlinks=True, copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr("sys.argv", ["mtp"])
    return Path("runs/fit")


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=True)
    how(content)
    torch.save(content, path)


def moments(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3)


@pytest.mark.parametrize(
    "how",
    [
        lambda content: content.pop("loops"),
        lambda content: content.update(loops={"fit_loop": {}}),
        lambda content: content.update(optimizer_states=[]),
        lambda content: content.update(optimizer_states=[{"state": 5}]),
        lambda content: content.update(lr_schedulers=["x"]),
        lambda content: content.update(callbacks=7),
        lambda content: content.update(heartbeat=3),
        lambda content: content["mtp_lightning"].update(schedule=3),
        lambda content: content["state_dict"].pop("model.embedding.weight"),
        lambda content: content["state_dict"].update({"model.embedding.weight": torch.zeros(2)}),
        moments,
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_structure_is_one_message(
    run: Path, how: Callable[[dict[str, Any]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    change(run / "checkpoints/step-00000004.ckpt", how)
    before = content_of(run)
    assert fit("runs/fit", *FLAGS, "--trainer.max_steps=6") == 2
    said = capsys.readouterr().err
    assert "mtp: error: " in said
    assert "step-00000004.ckpt" in said or "ckpt_path: " in said
    assert content_of(run) == before


def test_a_damaged_newest_is_passed_over_and_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / "checkpoints/step-00000004.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(bytes(content))
    assert fit("runs/fit", *FLAGS, "--trainer.max_steps=4") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert len(said) == 1
    assert str(newest) in said[0]
    assert "step-00000002.ckpt" in said[0]
    assert torch.load(newest, weights_only=True)["global_step"] == 4, "made again"


@pytest.mark.parametrize("flags", [("--ckpt_path=auto",), ()])
def test_without_a_good_one_nothing_is_begun_anew(
    run: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-700])
    before = content_of(run)
    assert fit("runs/fit", "--trainer.max_steps=4", *flags) == 2
    assert "holds no good checkpoint" in capsys.readouterr().err
    assert content_of(run) == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("mlflow_run_id", "torn"), ("mlflow_run_id", "folder"), ("unsent.jsonl", "deep"), ("unsent.jsonl", "list"),
        ("progress.json", "folder"), ("result.json", "folder"), ("failure.json", "folder"), ("config.yaml", "folder"),
        ("checkpoints", "latin"),
    ],
)  # fmt: skip
def test_a_state_file_that_would_be_in_the_way_is_named(
    run: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    DAMAGES[damage](path)
    before = content_of(run)
    assert fit("runs/fit", *FLAGS, "--trainer.max_steps=6") == 2
    assert str(path) in capsys.readouterr().err
    assert content_of(run) == before


def test_files_that_a_run_writes_anew_may_hold_anything(run: Path) -> None:
    for name in ("progress.json", "failure.json", "config.yaml"):
        (run / name).unlink(missing_ok=True)
        DAMAGES["deep"](run / name)
    assert fit("runs/fit", *FLAGS, "--trainer.max_steps=5") == 0
    assert Progress.read(run) is not None
    assert not (run / "failure.json").exists()


def test_validate_names_a_damaged_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / "checkpoints/step-00000004.ckpt"
    change(newest, lambda content: content["state_dict"].update({"model.embedding.weight": torch.zeros(2)}))
    assert main(["validate", "runs/fit"]) == 2
    assert "step-00000004.ckpt" in capsys.readouterr().err


def test_a_refused_start_takes_the_folders_of_lightnings_loggers_away(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = Path("here/lightning_logs")
    logs.mkdir(parents=True)
    for save_dir in ("here", "elsewhere/deep"):
        logger = f"{{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {save_dir}}}}}"
        Path("csv.yaml").write_text(f"trainer: {{logger: {logger}}}")
        before = sorted(Path(".").rglob("*"))
        flags = ("--data.init_args.context=100000", "--trainer.default_root_dir=runs/other", "-c", "csv.yaml")
        assert main(["fit", "-c", "conf/base.yaml", "-c", "without.yaml", *flags]) == 2
        assert "data.context = 100000" in capsys.readouterr().err
        made = [path for path in Path(".").rglob("*") if path not in before and "data" not in path.parts]
        assert made == []
    assert logs.is_dir()
