"""Names and paths come back as they went out, wherever they leave Python; or are refused in one message."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mtp_lightning.config.run.ending import command
from mtp_lightning.errors import InputError, printable
from mtp_lightning.grid.slurm.client import write_script
from mtp_lightning.grid.slurm.submit import exports
from mtp_lightning.grid.spec.resources import Resources
from mtp_lightning.grid.spec.values import shown
from mtp_lightning.tracking.logger import MLflowRunLogger
from mtp_lightning.tracking.store import check_uri, connect, default_tracking_uri, ensure_experiment

NAMES = [
    "two words",
    "$(touch ran)",
    "`touch ran`",
    "'single' \"double\"",
    "a;touch ran;b && c | d > e",
    "back\\slash $HOME ~ !x",
    "100%41 %A %%j",
    "[a-b]*{c}",
    "#hash & amp",
    "is it?",
    "-rf --output=x",
    "שלום",
    "日本語",
    "n" * 200,
]
PYTHON = f"""#!{sys.executable}
import json, os, sys
json.dump({{"args": sys.argv[1:], "path": os.environ.get("PYTHONPATH")}}, open(os.environ["SEEN"], "w"))
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_job_script_is_run_by_a_shell(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a program in place of srun that notes its arguments, and no file made but the copy."""
    folder, program = tmp_path / name, tmp_path / "srun"
    folder.mkdir()
    (folder / "job.pkl").write_text("the cell")
    program.write_text(PYTHON)
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", "")
    script = write_script(folder, "mtp-1", 1, Resources(), None, exports(folder / "code"))
    slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SEEN": str(tmp_path / "seen")}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-eu", script], cwd=tmp_path, env=environment, check=True)
    seen = yaml.safe_load((tmp_path / "seen").read_text())
    assert seen["args"][-1] == str(folder)
    assert seen["path"] == str(folder / "code")
    literal = str(folder).replace("%", "%%")
    assert f"{literal}/%A_%a_%t_log.out" in seen["args"]
    assert (folder / "7_0_submitted.pkl").read_text() == "the cell"
    assert {path.name for path in tmp_path.iterdir()} == {name, "srun", "seen"}
    line = next(line for line in script.read_text().splitlines() if line.startswith("#SBATCH --output="))
    assert shlex.split(line.removeprefix("#SBATCH ")) == [f"--output={literal}/%A_%a_0_log.out"]


def test_a_line_break_has_no_place_in_a_job_script(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\\nb' has a line break"):
        write_script(tmp_path / "a\nb", "mtp-1", 1, Resources(), None, [])


@pytest.mark.parametrize("name", NAMES)
def test_a_store_is_found_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_tracking_fakes import fresh_store

    fresh_store(tmp_path / name)
    uri = default_tracking_uri(tmp_path / name)
    made = ensure_experiment(uri, f"mtp/{name}")
    found = connect(uri).get_experiment_by_name(f"mtp/{name}")
    assert found is not None
    assert found.experiment_id == made
    assert {path.name for path in tmp_path.iterdir()} == {name}
    client = connect(uri)
    run = client.create_run(made, run_name=name).info.run_id
    client.log_text(run, "text", "note.txt")
    assert (tmp_path / name / "mlflow-artifacts" / "mtp").is_dir()
    assert client.get_run(run).info.run_name == name
    assert [file.path for file in client.list_artifacts(run)] == ["note.txt"]


@pytest.mark.parametrize("name", ["line\nbreak", "\x1b[31mred"])
def test_a_store_that_cannot_be_addressed_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot have a line break"):
        check_uri(default_tracking_uri(tmp_path / name))


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
def test_an_address_with_options_is_refused(scheme: str) -> None:
    with pytest.raises(InputError, match=r"question mark .* give sqlite\+pysqlite:///runs/mlflow.db%3Ftimeout=5$"):
        check_uri(f"{scheme}:///runs/mlflow.db?timeout=5")


@pytest.mark.parametrize("name", ["..", "mtp/../../x", "/etc", "a//b", "", ".", "mtp/", "a\nb", "x" * 300])
def test_experiments_stay_in_their_folder(name: str) -> None:
    with pytest.raises(InputError, match=r"trainer\.logger\.init_args\.experiment is "):
        MLflowRunLogger(experiment=name)


@pytest.mark.parametrize("name", NAMES)
def test_commands_can_be_pasted(name: str) -> None:
    assert shlex.split(command("generate", name))[-2:] == ["generate", name]


def test_terminals_are_not_driven() -> None:
    assert printable("a\x1b[2Jb\u202ec\nd") == "a\\x1b[2Jb\\u202ec\nd"
    assert printable("שלום äß 日本") == "שלום äß 日本"
    assert shown("a\x1b[2Jb\n") == '"a\\u001b[2Jb\\n"'
