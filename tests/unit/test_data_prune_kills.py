"""`mtp data prune`, killed before each of its writes and given again; and in processes that have imported nothing."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_checkpoints import save
from test_data_prune_command import prune, work
from tiny import tiny_backbone

from mtp_lightning.cli import main
from mtp_lightning.config.cell import fit_command
from mtp_lightning.data.preparing import pieces
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.own_code import import_own

__all__ = ["work"]

pytestmark = pytest.mark.usefixtures("shapes_unchecked")
CHILDREN = """
import os, signal, sys
from pathlib import Path
from mtp_lightning.cli import main

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")

def prune(folder):
    os.chdir(folder)
    return main(["data", "prune", *sys.argv[2:], "--out", str(folder / "kept"), "--json", str(folder / "j.json")])

def attempt(folder, kill_at=None):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    writes = 0
    def hook(name, args):
        nonlocal writes
        opened = name == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or name in CHANGES) and str(folder.name) in str(args[0]):
            writes += 1
            if writes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    os._exit(prune(folder))

def files(folder):
    # but for a temporary file of the process that was killed
    named = {path.name: path for path in folder.iterdir() if not path.suffix[1:].isdigit()}
    return {name: path.read_bytes().replace(str(folder).encode(), b"") for name, path in named.items()}

base, number = Path(sys.argv[1]), 0
(base / "whole0").mkdir()
assert prune(base / "whole0") == 0  # everything is imported now
while True:
    number += 1
    folder = base / f"killed{number}"
    folder.mkdir()
    if attempt(folder, number) == 0:
        break
    status = attempt(folder)
    if status or files(folder) != files(base / "whole0"):
        print(f"killed before write {number}: then status {status}, {sorted(path.name for path in folder.iterdir())}")
print(f"{number - 1} kills")
"""


def test_killed_before_each_write_it_goes_on(work: Path, tmp_path: Path) -> None:
    flags = ["--by", "length", "--fraction", "0.3", "--kind", "text", "--path"]
    done = subprocess.run(
        [sys.executable, "-c", CHILDREN, tmp_path, *flags, work / "corpus", "--glob", "**/*.py"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "killed before" not in done.stdout, done.stdout
    assert int(done.stdout.split()[-2]) > 9, "its folder and lock, the record, the list, the figures, what is removed"


def test_what_is_there_is_never_overwritten(work: Path, tmp_path: Path) -> None:
    """Also where a command was killed: by the same one it is accepted, by another it is not."""
    out = tmp_path / "kept"
    whole = prune(work, out, "length")
    (tmp_path / ".kept.partial").mkdir()
    assert prune(work, out, "length") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "kept.parquet"]
    (tmp_path / ".kept.partial").mkdir()
    for killed_before_the_list in (False, True):
        if killed_before_the_list:
            (tmp_path / "kept").unlink()
        with pytest.raises(InputError, match=r"out: '.*kept(\.parquet)?' exists already, and is of another command"):
            prune(work, out, "random")
        assert (tmp_path / "kept.parquet").read_bytes() == whole["kept.parquet"]
    assert prune(work, out, "length") == whole, "which goes on all the same"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with heads of a module `theirs`, which nobody has imported."""
    (tmp_path / "theirs.py").write_text("from my_heads import Gated\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_own("theirs")
    heads = HeadsConfig(n_future=2, kind="theirs.Gated")
    path = save(tmp_path / "own.ckpt", MTPModel(tiny_backbone(vocab_size=256, n_layers=4), heads))
    del sys.modules["theirs"]
    return path


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_workers_import_what_the_command_was_given(
    own: Path, work: Path, monkeypatch: pytest.MonkeyPatch, real: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(job: pieces.Job) -> None:
        sys.modules.pop("theirs", None)  # as in a process of its own
        pieces._begin(job)

    if not real:
        monkeypatch.setattr(pieces, "_pool", lambda n, job: ThreadPoolExecutor(n, "", begin, (job,)))
    words = ["data", "prune", "--by", "loss_head_2", "--fraction", "0.3", "--ckpt", str(own), "--kind", "text"]
    words += ["--path", str(work / "corpus"), "--glob", "**/*.py", "--workers", "2", "--out", str(own.parent / "kept")]
    assert main(words) == 2
    assert "add `--import theirs`" in capsys.readouterr().err
    assert main([*words, "--import", "theirs"]) == 0, capsys.readouterr().err
    assert (own.parent / "kept").is_file()


def test_cells_are_given_what_the_grid_was_given(own: Path) -> None:
    """They may begin with the weights of a checkpoint that has such heads."""
    assert main(["--version", "--import", "theirs"]) == 0
    assert fit_command(Path("config.yaml"))[2:] == ["mtp_lightning", "fit", "-c", "config.yaml", "--import=theirs"]
    assert main(["--version"]) == 0
    assert fit_command(Path("config.yaml"))[-1] == "config.yaml"
