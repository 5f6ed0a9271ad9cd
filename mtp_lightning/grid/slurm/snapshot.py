"""The code as it is at submission, for jobs that may begin days later: `runs/code/<commit>[-<hash of the changes>]`."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from mtp_lightning.errors import InputError
from mtp_lightning.files import write_json
from mtp_lightning.grid.run.state import DIFF
from mtp_lightning.tracking.provenance import SNAPSHOT_FILE

CODE = ("mtp_lightning", "callbacks", "conf", "pyproject.toml")
_GIT_SECONDS = 60.0


def checkout() -> Path | None:
    """The checkout this code runs from; None for an installed one, which nobody edits."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / ".git").exists() else None


def snapshot(root: Path, runs: Path) -> Path:
    """Copy the code of a checkout, once for each state of it: what is committed, and the changes since, which are kept
    as `code.diff` and include untracked files.

    Raises:
        InputError: git cannot say what the code is.
    """
    commit = _git(root, "rev-parse", "HEAD").decode().strip()
    diff = _changes(root)
    name = f"{commit[:12]}-{hashlib.sha256(diff).hexdigest()[:8]}" if diff else commit[:12]
    folder = runs / "code" / name
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    present = [path for path in CODE if _git(root, "ls-tree", "HEAD", path)]
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", "HEAD", *present))) as archive:
        archive.extractall(partial, filter="data")
    if diff:
        (partial / DIFF).write_bytes(diff)
        _git(partial, "apply", "--whitespace=nowarn", DIFF)
    write_json(partial / SNAPSHOT_FILE, {"mtp.git_commit": commit, "mtp.git_dirty": str(bool(diff)).lower()})
    partial.rename(folder)
    return folder


def _changes(root: Path) -> bytes:
    # all of them, as a user's configuration of git may have others
    diff = ["diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/"]
    tracked = _git(root, *diff, "HEAD", "--", *CODE)
    listed = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE).decode().split("\0")
    new = sorted(path for path in listed if path)
    return tracked + b"".join(_git(root, *diff, "--no-index", "--", os.devnull, path, fine=(0, 1)) for path in new)


def _git(folder: Path, *args: str, fine: tuple[int, ...] = (0,)) -> bytes:
    # The ceiling: in `runs` git would find the checkout above it, and apply nothing to files that it ignores.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    try:
        done = subprocess.run(
            ["git", *args], cwd=folder, env=environment, capture_output=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{folder}: the code cannot be copied for the jobs: {error}") from error
    if done.returncode not in fine:
        raise InputError(f"{folder}: the code cannot be copied for the jobs: {done.stderr.decode().strip()}")
    return done.stdout
