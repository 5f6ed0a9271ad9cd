"""What a run could not send yet, as JSON lines in its own folder, so that it outlives the process."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mtp_lightning.files import DamagedError, parse_json, read_state, write_text

if TYPE_CHECKING:
    from mlflow.entities import Metric

JOURNAL = "unsent.jsonl"


@dataclass
class Unsent:
    """`files` are (path, folder among the run's artifacts)."""

    points: list["Metric"] = field(default_factory=list)
    files: list[tuple[str, str | None]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.points) + len(self.files)


def write_journal(path: Path, unsent: Unsent) -> None:
    """In the place of what it held."""
    points: Iterable[object] = ([m.key, m.value, m.timestamp, m.step] for m in unsent.points)
    lines = [*({"point": point} for point in points), *({"file": list(file)} for file in unsent.files)]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_journal(path: Path) -> Unsent:
    """Points with the very times they were logged at, by which MLflow knows those that did arrive; nothing where there
    is no file.

    Raises:
        DamagedError: a line is not what was written here; names it.
    """
    from mlflow.entities import Metric

    points, files = check_journal(path)
    return Unsent([Metric(*point) for point in points], files)


def check_journal(path: Path) -> tuple[list[tuple[str, float, int, int]], list[tuple[str, str | None]]]:
    """`read_journal` without MLflow."""
    points, files = [], []
    for number, line in enumerate((read_state(path) or "").splitlines(), start=1):
        match parse_json(path, line):
            case {"point": [str(key), float(value), int(at), int(step)]} if max(at, step) < 2**63:
                points.append((key, value, at, step))
            case {"file": [str(file), str() | None as folder]}:
                files.append((file, folder))
            case _:
                raise DamagedError(path, f"line {number} is neither a point nor a file that could not be sent")
    return points, files
