"""Which files on this machine a corpus is read from, and which of those that are there are left out."""

import glob
import os
import sysconfig
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.stories import generator, questions, templates
from mtp_lightning.errors import InputError, did_you_mean

SUFFIXES: dict[str, tuple[str, ...]] = {
    "text": (".txt",),
    "json": (".jsonl", ".json", ".jsonl.gz", ".json.gz"),
    "pairs": (".jsonl", ".json", ".jsonl.gz", ".json.gz"),
    "parquet": (".parquet",),
}
"""What a folder is searched for, unless `glob` says otherwise."""
STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "encodings"})
"""Not the standard library (the first two); tests, which repeat themselves; and tables of data written as Python."""
SAME_FILE = "links to a file that is read already"


class LocalFiles(NamedTuple):
    root: Path
    """Document names are relative to it."""
    read: list[Path]
    """Sorted, each real file once."""
    left_out: list[tuple[str, Path]]
    """(why, which)."""


def local_files(source: SourceConfig) -> LocalFiles:
    """The files to read; of stories, the files of the generator, which are all that they depend on.

    Raises:
        InputError: a path that is missing, or that no file matches; a folder that cannot be read.
    """
    if source.kind == "python_stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        return LocalFiles(root, sorted(_stdlib_modules(root)), [])
    if source.kind in ("stories", "story_pairs"):
        files = [Path(generator.__file__), Path(templates.__file__), templates.FILE]
        files += [Path(questions.__file__)] if source.kind == "story_pairs" else []
        return LocalFiles(Path(generator.__file__).parent, files, [])
    path = Path(source.path or "").expanduser()
    if path.is_file():
        return LocalFiles(path.parent, [path], [])
    if path.is_dir():
        suffixes = () if source.glob else SUFFIXES[source.kind]
        found = _chosen(path, Path(source.glob or "**/*").parts, suffixes, hidden=True)
        root, wanted = path, source.glob or " or ".join(suffixes)
    elif glob.has_magic(str(path)):
        root, pattern = _split(path)
        found, wanted = _chosen(root, pattern, (), hidden=False), path.name
    else:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"data.source.path: there is no file or folder '{path}'{did_you_mean(path.name, siblings)}")
    if not found.read:
        raise InputError(f"data.source.path: no file in '{root}' matches {wanted}")
    return found


def _split(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Where the corpus lies, and the pattern below it. What is there under its own name is no pattern."""
    root, parts = Path(), list(path.parts)
    while parts and (not glob.has_magic(parts[0]) or (root / parts[0]).is_dir()):
        root /= parts.pop(0)
    return root, tuple(parts)


def _chosen(root: Path, pattern: Sequence[str], suffixes: tuple[str, ...], hidden: bool) -> LocalFiles:
    """
    Args:
        suffixes: what the names have to end in; others are left out. Empty: anything.
        hidden: whether the pattern matches names that begin with a dot.
    """
    read: list[Path] = []
    left_out: list[tuple[str, Path]] = []
    real: set[str] = set()
    # Links last: the name of a file that is met twice is its own.
    for path in sorted(_walk(root, pattern), key=lambda path: (path.is_symlink(), path)):
        parts = path.relative_to(root).parts
        if not _matches(parts, pattern):
            continue
        if not path.is_file():
            left_out.append(("links to nothing" if path.is_symlink() else "that are no files", path))
        elif not hidden and not _matches(parts, pattern, hidden=False):
            left_out.append(("hidden files, which a pattern does not match", path))
        elif suffixes and not path.name.endswith(suffixes):
            left_out.append((f"files of {path.suffix}" if path.suffix else "files without suffix", path))
        elif (name := os.path.realpath(path)) in real:
            left_out.append((SAME_FILE, path))
        else:
            real.add(name)
            read.append(path)
    return LocalFiles(root, sorted(read), left_out)


def _walk(root: Path, pattern: Sequence[str]) -> Iterator[Path]:
    """Everything that is no folder in folders that the pattern may reach. Links to folders are followed, after the
    folders that are none, and a folder is entered once: links may go round in a circle."""
    entered: set[tuple[int, int]] = set()
    folders, linked = [root], list[Path]()
    while folders or linked:
        folder = (folders or linked).pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            inside = sorted(folder.iterdir()) if folder.is_dir() else []
        except OSError as error:
            raise InputError(f"data.source.path: cannot read the folder '{folder}': {error.strerror}") from error
        for path in inside:
            if not path.is_dir():
                yield path
            elif _matches(path.relative_to(root).parts, pattern, begin=True):
                (linked if path.is_symlink() else folders).append(path)


def _matches(parts: Sequence[str], pattern: Sequence[str], *, hidden: bool = True, begin: bool = False) -> bool:
    """Whether a path fits: `**` is any number of folders.

    Args:
        begin: whether something below a folder with these parts may fit.
    """
    if not parts:
        return begin or all(part == "**" for part in pattern)
    if not pattern:
        return False
    seen = hidden or not parts[0].startswith(".") or pattern[0].startswith(".")
    if pattern[0] == "**":
        return _matches(parts, pattern[1:], hidden=hidden, begin=begin) or (
            seen and _matches(parts[1:], pattern, hidden=hidden, begin=begin)
        )
    fits = seen and fnmatchcase(parts[0], pattern[0])
    return fits and _matches(parts[1:], pattern[1:], hidden=hidden, begin=begin)


def _stdlib_modules(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in STDLIB_EXCLUDED]  # walk() does not enter the rest
        # _sysconfigdata*.py describes how this interpreter was compiled.
        yield from (Path(folder, n) for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata"))
