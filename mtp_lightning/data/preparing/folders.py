"""Where a corpus is prepared, beside where it will lie, and what is shown meanwhile."""

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mtp_lightning.data.output import partial_folder
from mtp_lightning.data.tokens.store import META_FILE
from mtp_lightning.errors import InputError
from mtp_lightning.files import FileLock

SHARDS = "data.directory: cannot write the shards to"


def refuse_occupied(directory: Path) -> None:
    """
    Raises:
        InputError: the folder has something else in it than shards, which another process may just have made.
    """
    occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if occupied and not (directory / META_FILE).is_file():
        raise InputError(f"'{directory}' exists and does not hold token shards: choose another folder")


@contextmanager
def work_folder(directory: Path, what: str = SHARDS) -> Iterator[Path]:
    """A folder beside `directory` (or beside a file to be made) that outlives a process which is killed, so that the
    next one goes on there; one of its own for a process that finds it in use. Gone after success, and after a failure
    before anything was done; not if it was there before: the command that was killed may be another one."""
    folder = partial_folder(directory)
    lock = FileLock(folder / "lock")
    was_there = folder.exists()
    with writing_to(directory, what):
        made = _make(folder)
        mine = False
        with suppress(FileNotFoundError):  # whoever had it has just finished
            mine = lock.acquire() and lock.path.exists()
    try:
        if not mine:
            with temporary_sibling(directory, what) as own:
                yield own
            return
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        if mine and not was_there and len(list(folder.glob("*.npz"))) < 2:
            shutil.rmtree(folder, ignore_errors=True)
            _unmake(made)
        raise
    finally:
        lock.release()


@contextmanager
def temporary_sibling(directory: Path, what: str = SHARDS) -> Iterator[Path]:
    """A new folder beside `directory`, on the same file system; gone afterwards, unless it was renamed."""
    # Not tempfile.mkdtemp: its folders are private, and shards are for all who may write beside them.
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}-{secrets.token_hex(4)}")
    with writing_to(directory, what):
        made = _make(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unmake(made)  # after success they hold what was made


def _make(folder: Path) -> list[Path]:
    """Those above it that were not there, the nearest first."""
    missing = [above for above in folder.absolute().parents if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _unmake(folders: Sequence[Path]) -> None:
    """Those that nobody uses: what is not empty stays."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def writing_to(directory: Path, what: str = SHARDS) -> Iterator[None]:
    """A full disk or a missing permission is not a bug here: one clear message.

    Args:
        what: how it begins, before the folder's name.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} '{directory}': {error.strerror}") from error


@contextmanager
def progress(
    doing: str = "preparing the corpus", done: str = "tokenized"
) -> Iterator[Callable[[int, int, bool], None]]:
    """Shows on standard error, if that is a terminal, how far it is: call what it gives with each chunk's documents and
    characters, and whether it was there already. What was there is also said where there is no terminal, at the end."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    n_documents = n_characters = n_there = 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing)

        def report(documents: int, characters: int, there: bool) -> None:
            nonlocal n_documents, n_characters, n_there
            n_documents, n_characters = n_documents + documents, n_characters + characters
            n_there += documents * there
            found = f", {n_there:,} of them {done} before" if n_there else ""
            text = f"{doing}: {n_documents:,} documents, {n_characters:,} characters{found}"
            progress.update(task, description=text)

        yield report
    if n_there:
        print(f"went on: {n_there:,} of {n_documents:,} documents had been {done} before", file=sys.stderr)
