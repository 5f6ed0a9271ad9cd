"""Which of this machine's GPUs each local run is shown: its own, as far as they are enough; and how many runs they are
enough for."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from mtp_lightning.grid.run.process import cores
from mtp_lightning.grid.spec.cells import Cell

VISIBLE = "CUDA_VISIBLE_DEVICES"
_GPU = re.compile(r"\d+|(GPU|MIG)-.+")


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """By their numbers or names, as CUDA reads `CUDA_VISIBLE_DEVICES`: the first that is none ends the list."""
    if VISIBLE in environment:
        named = (name.strip() for name in environment[VISIBLE].split(","))
        return list(takewhile(_GPU.fullmatch, named))
    return [str(i) for i in range(sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.iterdir()))]


def gpus_of(cell: Cell, there: int) -> int:
    """How many of the GPUs that are there a cell trains on, by what `mtp fit` will be given; all of them where its
    configuration names single ones."""
    trainer = cell.config["trainer"]
    if trainer.get("accelerator") not in ("auto", "gpu", "cuda"):
        return 0
    processes = cell.resources.tasks_per_node
    asked = str(processes if processes > 1 else trainer["devices"])
    if asked in ("auto", "-1"):
        asked = str(cell.resources.gpus or there)
    return min(int(asked), there) if asked.isdigit() else there


def least_used(gpus: Sequence[str], used: Iterable[str], count: int) -> list[str]:
    """`count` of them, in their order; `used` has a GPU once for each run on it."""
    runs = Counter(used)
    chosen = sorted(gpus, key=lambda gpu: runs[gpu])[:count]
    return [gpu for gpu in gpus if gpu in chosen]


def default_workers(cells: Sequence[Cell], gpus: int) -> int:
    """As many as the GPUs are enough for; of cells that train on processors one a core, four at most."""
    asked = max((gpus_of(cell, gpus) for cell in cells), default=0)
    return max(1, min(len(cells), gpus // asked if asked else min(cores(), 4)))
