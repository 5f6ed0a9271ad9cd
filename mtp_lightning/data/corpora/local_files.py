"""Which files on this machine a corpus is read from."""

import glob
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.stories import generator, templates
from mtp_lightning.errors import InputError, did_you_mean

SUFFIXES: dict[str, tuple[str, ...]] = {
    "text": (".txt",),
    "json": (".jsonl", ".json", ".jsonl.gz", ".json.gz"),
    "parquet": (".parquet",),
}
"""What a folder is searched for, unless `glob` says otherwise."""
STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "encodings"})
"""Not the standard library (the first two); tests, which repeat themselves; and tables of data written as Python."""


def local_files(source: SourceConfig) -> tuple[Path, list[Path]]:
    """The folder that document names are relative to, and the files to read, sorted; of stories, the files of the
    generator, which are all that they depend on.

    Raises:
        InputError: a path that is missing, or that no file matches.
    """
    if source.kind == "python_stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        return root, sorted(_stdlib_modules(root))
    if source.kind == "stories":
        return Path(generator.__file__).parent, [Path(generator.__file__), Path(templates.__file__), templates.FILE]
    path = Path(source.path or "").expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        pattern = source.glob or "**/*"
        found = [p for p in path.glob(pattern) if source.glob or p.name.endswith(SUFFIXES[source.kind])]
        root, wanted = path, source.glob or " or ".join(SUFFIXES[source.kind])
    elif glob.has_magic(str(path)):
        found = [Path(p) for p in glob.glob(str(path), recursive=True)]
        # The parts before the pattern are where the corpus lies, not what its documents are called.
        literal = [part for i, part in enumerate(path.parts) if not any(map(glob.has_magic, path.parts[: i + 1]))]
        root, wanted = Path(*literal), path.name
    else:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"data.source.path: there is no file or folder '{path}'{did_you_mean(path.name, siblings)}")
    files = sorted(p for p in found if p.is_file())
    if not files:
        raise InputError(f"data.source.path: no file in '{root}' matches {wanted}")
    return root, files


def _stdlib_modules(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in STDLIB_EXCLUDED]  # walk() does not enter the rest
        # _sysconfigdata*.py describes how this interpreter was compiled.
        yield from (Path(folder, n) for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata"))
