"""A run knows itself: its configuration is in its folder, and `mtp fit` ends with the commands that go on from it."""

import json
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from small_runs import fit, make_folder
from test_tracking_fakes import runs_of

from mtp_lightning.cli import main
from mtp_lightning.config.config_files import find_config
from mtp_lightning.config.one_config import resolve_config
from mtp_lightning.config.run.ending import next_command
from mtp_lightning.config.run.quiet import is_news
from mtp_lightning.config.run.starting import write_config
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.tracking.store import default_tracking_uri


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One finished run, `runs/one`."""
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["mtp"])
        make_folder(folder)
        assert fit("runs/one") == 0
        yield folder


def numbers(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in (line.split() for line in text.splitlines())}


def test_a_run_is_validated_by_its_folder_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = "runs/one/checkpoints/step-00000006.ckpt"
    ways = (
        ["runs/one"],
        [checkpoint],
        ["-c", "conf/base.yaml", "-c", "small.yaml", "--ckpt_path", checkpoint],
    )
    found = []
    for way in ways:
        assert main(["validate", *way]) == 0
        found.append(numbers(capsys.readouterr().out))
    assert found[0] == found[1] == found[2]
    assert {"val/loss", "val/loss/head_2"} <= found[0].keys()
    assert main(["validate", "runs/one", "--data.val_windows", "2"]) == 0
    assert numbers(capsys.readouterr().out) != found[0], "flags go on top"


def test_without_a_checkpoint_callback_nothing_is_saved_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning would add one of its own, whose files `ckpt_path: auto` does not know."""
    assert fit("runs/bare", "--trainer.callbacks=null", "--trainer.logger=false", "--trainer.max_steps=3") == 0
    assert not list(folder.glob("runs/bare/**/*.ckpt"))
    shown = capsys.readouterr()
    assert "warning: nothing of this run is saved" in shown.err
    assert "no checkpoint was saved" in shown.out


def test_validation_writes_its_metrics_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "runs/one", "--json", "metrics.json"]) == 0
    printed, written = numbers(capsys.readouterr().out), json.loads((folder / "metrics.json").read_text())
    assert written["metrics"] == pytest.approx(printed, abs=1e-6)
    assert written["checkpoint"] == "runs/one/checkpoints/step-00000006.ckpt"
    assert main(["validate", "runs/one", "--json", "nowhere/metrics.json"]) == 2
    assert "nowhere/metrics.json cannot be written" in capsys.readouterr().err
    assert main(["validate"]) == 2
    assert "mtp validate runs/fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "mtp validate: say what to validate: the folder of a run"),
        (["runs/nothing"], "there is no run or checkpoint 'runs/nothing'"),
        (["bare"], "the run in 'bare' has no config.yaml"),
        (["unsaved"], "folder 'unsaved' holds no checkpoint"),
    ],
)
def test_what_cannot_be_validated(folder: Path, args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bare", "unsaved"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "unsaved" / "config.yaml").write_text((folder / "runs/one/config.yaml").read_text())
    args = args or ["-c", "conf/base.yaml", "-c", "small.yaml"]
    assert main(["validate", *args]) == 2
    assert says in capsys.readouterr().err


def test_the_configuration_in_the_folder_is_the_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It makes the same run again, with nothing else."""
    config = yaml.safe_load((folder / "runs/one/config.yaml").read_text())
    assert config["model"]["heads"]["n_future"] == 2
    assert config["trainer"]["logger"]["init_args"]["directory"] == "runs/one"
    assert main(["fit", "-c", "runs/one/config.yaml", "--trainer.default_root_dir=runs/two",
                 "--trainer.logger.directory=runs/two"]) == 0  # fmt: skip
    capsys.readouterr()
    again = yaml.safe_load((folder / "runs/two/config.yaml").read_text())
    again["trainer"]["default_root_dir"] = again["trainer"]["logger"]["init_args"]["directory"] = "runs/one"
    assert again == config
    names = [run.name for run in runs_of(default_tracking_uri(folder / "runs"), "mtp/fit")]
    assert sorted(names) == ["one", "two"], "each is called as its folder is, though their seed is the same"


def test_the_launchers_configuration_of_a_cell_is_left_alone(folder: Path) -> None:
    """A cell is given its whole configuration in its own folder, as the launcher writes it."""
    files = [find_config("conf/base.yaml"), folder / "small.yaml"]
    config = resolve_config(files, {"trainer.default_root_dir": "runs/cell"}) | {"ckpt_path": "auto"}
    (folder / "runs/cell").mkdir()
    file = folder / "runs/cell/config.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    os.utime(file, ns=(5, 5))
    assert main(["fit", "-c", "runs/cell/config.yaml"]) == 0
    assert file.stat().st_mtime_ns == 5


def test_a_file_that_says_the_same_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("{a: 1, b: [2]}")
    os.utime(file, ns=(5, 5))
    write_config(tmp_path, "# a comment\nb:\n- 2\na: 1\n")
    assert (file.read_text(), file.stat().st_mtime_ns) == ("{a: 1, b: [2]}", 5)
    write_config(tmp_path, "a: 2")
    assert file.read_text() == "a: 2"


def test_fit_ends_with_what_to_do_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("runs/last") == 0
    said = capsys.readouterr()
    lines = dict(line.split(":", 1) for line in said.out.splitlines() if ":" in line)
    assert lines["checkpoint"].strip() == "runs/last/checkpoints/step-00000006.ckpt"
    generate, ui = (shlex.split(lines[key]) for key in ("generate", "MLflow"))
    words = generate[generate.index("generate") :]
    assert main([*words, "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("Once")
    assert ui[ui.index("ui") :] == ["ui", "--experiment", "mtp/fit"]
    for advertisement in ("Tip", "litlogger", "litmodels", "GPU available", "TPU available"):
        assert advertisement not in said.out + said.err


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("text", "generate runs/x --prompt Once"),
        ("star_graph", "evaluate star-graph runs/x"),
        ("polynomial", "evaluate polynomial runs/x"),
        ("somebody_elses", "validate runs/x"),
        (None, "validate runs/x"),
    ],
)
def test_the_command_fits_the_data(task: str | None, says: str) -> None:
    data = MTPDataModule()
    if task == "text":
        data.tokenizer = ByteTokenizer()
    elif task is not None:
        data.task = SimpleNamespace(name=task)
    assert next_command(data, "runs/x").endswith(says)


@pytest.mark.parametrize(
    ("level", "text", "shown"),
    [
        (logging.INFO, "GPU available: False, used: False", False),
        (logging.INFO, "GPU available: True (cuda), used: True", True),
        (logging.INFO, "💡 Tip: For seamless cloud uploads, try installing [litmodels](https://x)", False),
        (logging.INFO, "Restored all states from the checkpoint at x", True),
        (logging.WARNING, "GPU available: False, though one was asked for", True),
    ],
)
def test_advertisements_alone_are_left_out(level: int, text: str, shown: bool) -> None:
    assert is_news(logging.LogRecord("x", level, "x.py", 1, text, None, None)) is shown
