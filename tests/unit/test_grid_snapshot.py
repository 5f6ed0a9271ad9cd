"""The code that jobs run: a copy of the checkout as it was, with what was changed and not committed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtp_lightning import errors, own_code
from mtp_lightning.errors import InputError
from mtp_lightning.grid.slurm.snapshot import snapshot
from mtp_lightning.grid.slurm.submit import exports
from mtp_lightning.tracking.provenance import git_tags


def git(folder: Path, *args: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name, text in {
        "mtp_lightning/a.py": "A = 1\n",
        "callbacks/b.py": "B = 1\n",
        "README.md": "",
        "x.py": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / ".gitignore").write_text("runs/\n*.log\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("inside", [True, False])
def test_a_copy_holds_the_code_as_it_was_and_is_made_once_for_each_state(
    checkout: Path, tmp_path: Path, inside: bool
) -> None:
    runs = checkout / "runs" if inside else tmp_path / "runs"
    commit = git(checkout, "rev-parse", "HEAD").strip()
    clean = snapshot(checkout, runs)
    assert clean == runs / "code" / commit[:12]
    assert files(clean) == {"mtp_lightning/a.py", "callbacks/b.py", "git.json"}
    assert git_tags(clean) == {"mtp.git_commit": commit, "mtp.git_dirty": "false"} == git_tags(checkout)

    (checkout / "README.md").write_text("no code")
    assert snapshot(checkout, runs) == clean
    (checkout / "mtp_lightning/a.py").write_text("A = 2\n")
    (checkout / "callbacks/b.py").unlink()
    (checkout / "callbacks/new.py").write_bytes(b"NEW = 'caf\xc3\xa9'\r\n")
    (checkout / "callbacks/notes.txt").write_text("")
    dirty = snapshot(checkout, runs)
    assert dirty.name.startswith(f"{commit[:12]}-")
    assert files(dirty) == {"mtp_lightning/a.py", "callbacks/new.py", "callbacks/notes.txt", "code.diff", "git.json"}
    assert (dirty / "mtp_lightning/a.py").read_text() == "A = 2\n"
    assert (dirty / "callbacks/new.py").read_bytes() == b"NEW = 'caf\xc3\xa9'\r\n"
    assert git_tags(dirty) == {"mtp.git_commit": commit, "mtp.git_dirty": "true"}
    assert snapshot(checkout, runs) == dirty

    (checkout / "callbacks/new.py").write_text("NEW = 2\n")
    assert snapshot(checkout, runs).name not in (clean.name, dirty.name)
    assert len(list((runs / "code").iterdir())) == 3, "and nothing half-made"


def test_a_users_own_git_configuration_changes_nothing(checkout: Path) -> None:
    (checkout / "mtp_lightning/a.py").write_text("A = 3\n")
    (checkout / "callbacks/words.json").write_text("[]")
    git(checkout, "config", "diff.noprefix", "true")
    copy = snapshot(checkout, checkout / "runs")
    assert (copy / "mtp_lightning/a.py").read_text() == "A = 3\n"
    assert (copy / "callbacks/words.json").read_text() == "[]"


def test_the_checkout_is_not_touched(checkout: Path) -> None:
    (checkout / "mtp_lightning/a.py").write_text("A = 2\n")
    (checkout / "callbacks/new.py").write_text("")
    before = git(checkout, "status", "--porcelain"), files(checkout / ".git")
    snapshot(checkout, checkout / "runs")
    assert (git(checkout, "status", "--porcelain"), files(checkout / ".git")) == before


def test_git_that_cannot_say_what_the_code_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    with pytest.raises(InputError, match=r"the code cannot be copied for the jobs: .*HEAD"):
        snapshot(tmp_path / "empty", tmp_path / "runs")


def test_jobs_import_the_copy_though_they_begin_in_the_checkout(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = snapshot(checkout, checkout / "runs")
    for root in (code, checkout):
        for name in ("mtp_lightning", "callbacks"):
            (root / name / "__init__.py").touch()
        for module in (own_code, errors):
            name = Path(module.__file__).name
            (root / "mtp_lightning" / name).write_text(Path(module.__file__).read_text(encoding="utf-8"))
    (checkout / "mtp_lightning/__main__.py").write_text("raise SystemExit('the checkout')")
    (code / "mtp_lightning/__main__.py").write_text(
        "from mtp_lightning.own_code import CODE, put_working_directory_last\n"
        "put_working_directory_last()\n"
        "import x, callbacks\n"
        "print('the copy' if callbacks.__file__.startswith(str(CODE)) else callbacks.__file__)\n"
    )
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PYTHONPATH", "")
    script = "\n".join([*exports(code), f"{sys.executable} -m mtp_lightning"])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.stdout == "the copy\n", done.stderr
    assert json.loads((code / "git.json").read_text())["mtp.git_dirty"] == "false"
