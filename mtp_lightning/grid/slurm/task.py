"""One process of a cell's job: which one it is, and what it and the others tell each other through files, in the folder
of the submission that all nodes see."""

import json
import os
import socket
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from mtp_lightning.files import read_json, write_json
from mtp_lightning.grid.run.process import child_environment
from mtp_lightning.grid.slurm.address import VARIABLE, own_address
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.resources import Resources
from mtp_lightning.secrets import references

BEAT_SECONDS = 3.0
"""How often the other tasks say that they are there."""
SILENT_SECONDS = 5 * BEAT_SECONDS
"""A task that says nothing for so long was lost, with its node."""
POLL_SECONDS = 0.2


def write_cell(folder: Path, index: int, cell: Cell, config: dict[str, Any], command: list[str]) -> None:
    """Write the cell for its job to read. `config` is what `mtp fit` is given."""
    plain = asdict(replace(cell, config=references(config), aliases=())) | {"directory": str(cell.directory)}
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
        self.address: str | None = own_address() if self.cell.resources.nodes > 1 and not rank else None
        """Of task 0's node, where there are others; the other tasks have it announced."""

    @classmethod
    def of_this_process(cls, folder: Path) -> "Task":
        job, index = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
        rank, restart = int(os.environ["SLURM_PROCID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return cls(folder, f"{job}_{index}", int(index), rank, restart)

    @property
    def environment(self) -> dict[str, str]:
        """Threads for the cores that Slurm gave the task: on a node without confinement a process sees all cores."""
        per_node = int(os.environ.get("SLURM_CPUS_ON_NODE", "1")) // self.cell.resources.tasks_per_node
        threads = os.environ.get("SLURM_CPUS_PER_TASK", str(max(1, per_node)))
        meet = {} if self.address is None else {VARIABLE: self.address}
        return child_environment(1, {"OMP_NUM_THREADS": threads, **os.environ, **meet})

    def announce(self, attempt: int) -> None:
        """To the other tasks: start this attempt; 0: all is done, end."""
        if self.processes > 1:
            said = {"restart": self.restart, "attempt": attempt, "address": self.address}
            write_json(self.folder / f"{self.job}.attempt.json", said)

    def announced(self) -> int | None:
        raw = read_json(self.folder / f"{self.job}.attempt.json")
        if raw is None or raw["restart"] != self.restart:
            return None
        self.address = raw["address"]
        return int(raw["attempt"])

    def beat(self, count: int) -> None:
        write_json(self._alive(self.rank), {"restart": self.restart, "count": count})

    def silent_task(self) -> int | None:
        """One that does not say any more that it is there; looked for where there are several nodes, until all have."""
        if self.cell.resources.nodes == 1:
            return None
        waiting = {rank: read_json(self._alive(rank)) for rank in range(1, self.processes)}
        deadline = time.monotonic() + SILENT_SECONDS
        while waiting and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            waiting = {rank: last for rank, last in waiting.items() if read_json(self._alive(rank)) == last}
        return min(waiting, default=None)

    def _alive(self, rank: int) -> Path:
        return self.folder / f"{self.job}.{rank}.alive.json"

    def report_death(self, attempt: int, returncode: int) -> None:
        death = {"restart": self.restart, "attempt": attempt, "host": socket.gethostname(), "returncode": returncode}
        write_json(self.folder / f"{self.job}.{self.rank}.died.json", death)

    def reported_death(self, attempt: int) -> str | None:
        """How the process of another task ended in this attempt, if it failed."""
        for rank in range(1, self.processes):
            raw = read_json(self.folder / f"{self.job}.{rank}.died.json")
            if raw is not None and (raw["restart"], raw["attempt"]) == (self.restart, attempt):
                return f"task {rank} on {raw['host']} ended with exit status {raw['returncode']}"
        return None
