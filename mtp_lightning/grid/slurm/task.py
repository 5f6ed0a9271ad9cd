"""One process of one cell's job: what it runs, and how the processes of one cell agree when to."""

import json
import os
import socket
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from mtp_lightning.files import read_json, write_json
from mtp_lightning.grid.run.process import child_environment
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.resources import Resources


def write_cell(folder: Path, index: int, cell: Cell, config: dict[str, Any], command: list[str]) -> None:
    """The cell as its job reads it. `config` is what `mtp fit` is given."""
    plain = asdict(replace(cell, config=config, aliases=())) | {"directory": str(cell.directory)}
    (folder / f"{index}.json").write_text(json.dumps({"cell": plain, "command": command}))


class Task:
    """One process of one element of a job array."""

    def __init__(self, folder: Path, job: str, index: int, rank: int, restart: int) -> None:
        self.folder, self.job, self.rank, self.restart = folder, job, rank, restart
        raw = read_json(folder / f"{index}.json")
        assert raw is not None, f"{folder} lacks the cell {index}"
        known = {field.name for field in fields(Cell)}
        plain = {key: value for key, value in raw["cell"].items() if key in known}
        plain |= {"directory": Path(plain["directory"]), "resources": Resources(**plain["resources"]), "aliases": ()}
        self.cell, self.command = Cell(**plain), raw["command"]
        self.processes = self.cell.resources.nodes * self.cell.resources.tasks_per_node

    @classmethod
    def of_this_process(cls, folder: Path) -> "Task":
        slurm = os.environ
        job, index = slurm["SLURM_ARRAY_JOB_ID"], slurm["SLURM_ARRAY_TASK_ID"]
        rank, restart = int(slurm["SLURM_PROCID"]), int(slurm.get("SLURM_RESTART_COUNT", "0"))
        return cls(folder, f"{job}_{index}", int(index), rank, restart)

    @property
    def environment(self) -> dict[str, str]:
        """Threads for the cores that Slurm gave the task; a node without confinement would show all of its own."""
        per_node = int(os.environ.get("SLURM_CPUS_ON_NODE", "1")) // self.cell.resources.tasks_per_node
        threads = os.environ.get("SLURM_CPUS_PER_TASK", str(max(1, per_node)))
        return child_environment(1, {"OMP_NUM_THREADS": threads, **os.environ})

    def say_turn(self, attempt: int) -> None:
        """To the other tasks: start this attempt; 0: go home."""
        if self.processes > 1:
            write_json(self.folder / f"{self.job}.turn.json", {"restart": self.restart, "attempt": attempt})

    def turn(self) -> int | None:
        raw = read_json(self.folder / f"{self.job}.turn.json")
        return raw["attempt"] if raw is not None and raw["restart"] == self.restart else None

    def say_died(self, attempt: int, returncode: int) -> None:
        said = {"restart": self.restart, "attempt": attempt, "host": socket.gethostname(), "returncode": returncode}
        write_json(self.folder / f"{self.job}.{self.rank}.died.json", said)

    def fellow_died(self, attempt: int) -> str | None:
        """How another task's process of this attempt ended that should not have."""
        for rank in range(1, self.processes):
            raw = read_json(self.folder / f"{self.job}.{rank}.died.json")
            if raw is not None and (raw["restart"], raw["attempt"]) == (self.restart, attempt):
                return f"task {rank} on {raw['host']} ended with exit status {raw['returncode']}"
        return None
