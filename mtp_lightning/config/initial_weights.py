"""The weights that the cells of a grid begin with, as far as a plan needs them: their content, which is part of an
identity, and whether those of a cell that has not run yet will fit."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mtp_lightning.files import DamagedError, cache_folder, read_state, write_text
from mtp_lightning.model.initial import CELL

_CHECKPOINTS = ("checkpoints/*.ckpt", "*.ckpt")
_MANIFEST = "manifest.json"
"""Of a sharded checkpoint (`checkpoints.sharded`, which loads torch): it has the hashes of the other files."""


def cell_path(signature: str = "") -> str:
    """`model.init.path` of what begins with the weights of another cell of its grid."""
    return CELL + signature


def weights_identity(path: str) -> str:
    """What stands for `model.init.path` in a signature: another cell's, or a digest of the weights.

    Raises:
        InputError: there are none, or they are damaged.
    """
    return path if path.startswith(CELL) else f"weights:{weights_content(path)}"


def weights_content(path: str) -> str:
    """A digest of the weights that `model.init.path` names. It is remembered by name, size and time of change of the
    file, or of the checkpoints in a run's folder, so that they are read once.

    Raises:
        InputError: there are none, or they are damaged.
    """
    at = Path(path)
    is_run = at.is_dir() and at.suffix != ".ckpt"
    files = sorted(file for pattern in _CHECKPOINTS for file in at.glob(pattern)) if is_run else [at]
    files = [file / _MANIFEST if file.is_dir() else file for file in files]
    stats = [(str(file.absolute()), os.stat(file)) for file in files if file.is_file()]
    return _content(path, tuple(f"{name} {found.st_size} {found.st_mtime_ns}" for name, found in stats))


@cache
def _content(path: str, files: tuple[str, ...]) -> str:
    name = hashlib.sha256("\n".join(files).encode()).hexdigest()[:24]
    folder = cache_folder()
    known = None if folder is None else folder / "weights" / name
    remembered = None if known is None else _remembered(known)
    if files and remembered is not None:
        return remembered
    from mtp_lightning.checkpoints.initial import digest_of  # and torch, which most plans do without

    found = digest_of(Path(path))
    if known is None:
        return found
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_text(known, found)
    except OSError as error:  # it is read again the next time
        print(f"warning: {known.parent}: {error.strerror}; nothing is remembered", file=sys.stderr)
    return found


def _remembered(file: Path) -> str | None:
    """What a file of our own remembers; None where there is none, or one that holds something else."""
    try:
        found = (read_state(file) or "").strip()
    except DamagedError:
        return None
    return found if re.fullmatch(r"[0-9a-f]{16}", found) else None


def check_chained(parent: Mapping[str, Any], child: Mapping[str, Any], name: str) -> None:
    """Whether a cell can begin with the weights of another that has not run yet.

    Args:
        parent: its configuration, as that of `child`.
        name: of the parent, for the message.

    Raises:
        InputError: it cannot; says what to set.
    """
    parts = [json.dumps(config["model"][key]) for config in (parent, child) for key in ("backbone", "heads")]
    _check_chained(*parts, json.dumps(child["model"]["init"] | {"path": CELL}), name)


@cache  # once for all seeds and for all that neither model depends on
def _check_chained(there: str, their_heads: str, here: str, our_heads: str, init: str, name: str) -> None:
    import torch

    from mtp_lightning.checkpoints.vocabulary import with_vocabulary
    from mtp_lightning.model.config import BackboneConfig, HeadsConfig
    from mtp_lightning.model.initial import InitConfig
    from mtp_lightning.model.mtp import MTPModel
    from mtp_lightning.model.own_kind import import_kind
    from mtp_lightning.model.transfer import described, make_plan

    theirs, ours = HeadsConfig(**json.loads(their_heads)), HeadsConfig(**json.loads(our_heads))
    for heads in (theirs, ours):
        import_kind(heads)
    with torch.device("meta"):
        model = MTPModel(BackboneConfig.from_dict(json.loads(here)), ours)
    source = described(name, BackboneConfig.from_dict(json.loads(there)), theirs)
    wanted = InitConfig(**json.loads(init))
    if wanted.vocabulary == "transfer":
        source = with_vocabulary(source, model.config.vocab_size)
    make_plan(source, model, wanted)
