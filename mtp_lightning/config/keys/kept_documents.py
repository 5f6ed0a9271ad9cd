"""Lists of kept documents (`data.source.keep`) in a cell's signature: by their content, as another list may be made
under the same name."""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from mtp_lightning.data.corpora.kept import kept_hash

KEY = "keep"


def kept_by_content(section: Any) -> Any:
    """The `data` section of a configuration with a digest in place of the path of every list that is there."""
    if isinstance(section, (list, tuple)):
        return [kept_by_content(item) for item in section]
    if not isinstance(section, Mapping):
        return section
    return {
        key: _identity(value) if key == KEY and isinstance(value, str) else kept_by_content(value)
        for key, value in section.items()
    }


def _identity(path: str) -> str:
    try:
        found = os.stat(os.path.expanduser(path))
    except OSError:
        return path  # whoever reads the list says that it is missing
    return f"kept:{_digest(path, found.st_size, found.st_mtime_ns)}"


@cache
def _digest(path: str, size: int, changed: int) -> str:
    return kept_hash(path)
