"""The working directory is the last entry of the path, however the command was started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtp_lightning.own_code import CODE, put_working_directory_last

SHOW = "import sys, callbacks, my_probe; print(callbacks.__file__, sys.path[-1], sep='\\n')"
THEN = "from mtp_lightning.own_code import put_working_directory_last as last; last();"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a user's own `callbacks/` folder, a probe, and a file that Python's library has too."""
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/__init__.py").write_text("raise RuntimeError('the user's own')")
    (tmp_path / "my_probe.py").touch()
    (tmp_path / "inspect.py").write_text("raise RuntimeError('not the one of Python')")
    return tmp_path


@pytest.mark.parametrize("flags", [[], ["-P"]], ids=["first, as under -m", "absent, as in a script"])
@pytest.mark.parametrize("path", ["", "."], ids=["", "and in PYTHONPATH"])
def test_own_modules_are_found_and_hide_nothing(folder: Path, flags: list[str], path: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, str(CODE)]))}
    command = [sys.executable, *flags, "-c", f"{THEN}{THEN}{SHOW}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [str(CODE / "callbacks/__init__.py"), str(folder.resolve())], done.stderr


def test_python_m_imports_nothing_before_that(folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(CODE)}
    command = [sys.executable, "-m", "mtp_lightning", "--version"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("mtp "), done.stderr


def test_in_the_checkout_the_code_stays_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CODE)
    monkeypatch.setattr("sys.path", [str(CODE), "elsewhere"])
    put_working_directory_last()
    assert sys.path == [str(CODE), "elsewhere"]
