"""What a run could not send yet, as JSON lines in its own folder, so that it outlives the process."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mtp_lightning.files import write_text

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
    is no file."""
    from mlflow.entities import Metric

    unsent = Unsent()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        entry = json.loads(line)
        if "point" in entry:
            unsent.points.append(Metric(*entry["point"]))
        else:
            file, folder = entry["file"]
            unsent.files.append((file, folder))
    return unsent
