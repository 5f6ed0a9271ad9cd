"""Whether the files of a folder of shards still hold what was written: asked when they are first used."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtp_lightning.data.tokens.store import META_FILE, ShardsMeta, Split, TokenStore, read_meta
from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, read_json, write_text

VERIFIED_FILE = "verified.json"
"""Size and date of each file when its content was last found right: until they change, it is not read again."""


def verify_shards(directory: Path, meta: ShardsMeta) -> list[str]:
    """Read every file that was not verified since it was last written, and hold it against its hash.

    Returns:
        The names of those that were read. Of shards made before hashes were kept, none.

    Raises:
        InputError: a file that is missing, or whose content is not what was written.
    """
    before = _known(directory / VERIFIED_FILE)
    now: dict[str, list[int]] = {}
    read = []
    for name, expected in (meta.hashes or {}).items():
        path = directory / name
        try:
            status = path.stat()
            now[name] = [status.st_size, status.st_mtime_ns]
            if before.get(name) == now[name]:
                continue
            if not path.is_file():
                raise InputError(f"'{path}' is no file: prepare the shards again")
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"'{path}' cannot be read ({error.strerror}): prepare the shards again") from error
        if found != expected:
            raise InputError(
                f"'{path}' is damaged: its content is not what was written (SHA-256 {found[:12]}..., and {META_FILE} "
                f"says {expected[:12]}...); remove '{directory}' and prepare the shards again"
            )
        read.append(name)
    if read:
        with suppress(OSError):  # somebody else's folder: it is read again the next time
            write_text(directory / VERIFIED_FILE, json.dumps(now, indent=1) + "\n")
    return read


def open_store(directory: Path, split: Split) -> TokenStore:
    """A split, its files verified.

    Raises:
        InputError: as of `verify_shards` and `TokenStore`.
    """
    verify_shards(directory, read_meta(directory))
    return TokenStore(directory, split)


def _known(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) or {}
    except DamagedError:  # as by a full disk: nothing is known
        return {}
