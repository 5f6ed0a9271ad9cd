"""What a corpus is made of, as plain values: shards keep it, and it names the folder that they are cached in."""

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtp_lightning.data.corpora.chat import template_hash
from mtp_lightning.data.corpora.kept import kept_hash
from mtp_lightning.data.corpora.local_files import local_files
from mtp_lightning.data.corpora.source import SourceConfig


def describe(source: SourceConfig) -> dict[str, Any]:
    """The source as plain values, with a hash of local files' sizes and dates: an edited corpus is another corpus."""
    description: dict[str, Any] = asdict(source)
    del description["strict"]  # the same text, or none
    del description["chat_template"]
    if not source.deduplicate:
        del description["deduplicate"]  # as it always was
    if source.chat_template is not None:
        description["chat_template"] = template_hash(Path(source.chat_template).expanduser())
    del description["keep"]
    if source.keep is not None:
        description["keep"] = kept_hash(source.keep)
    if source.kind == "python_stdlib":
        description["python"] = sys.version.split()[0]
    if source.kind != "hub":
        root, files, _ = local_files(source)
        hashed = hashlib.sha256()
        for path in files:
            status, name = path.stat(), path.relative_to(root).as_posix()
            hashed.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="replace"))
        description["files"] = hashed.hexdigest()[:16]
    return description
