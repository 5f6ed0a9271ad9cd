"""What was submitted to Slurm, as JSON below `runs/submissions`: one file a job array, named by its token.

The file is written before sbatch is called (an intent) and completed with the job's id after it. The token is part of
the job's name: the job of an intent whose submitter was killed in between is found again by asking Slurm. Beside the
file lies a folder of the same name with the batch script, the cells as the job reads them, and Slurm's output.
"""

import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mtp_lightning.errors import InputError
from mtp_lightning.files import FileLock, read_json, write_json
from mtp_lightning.grid.slurm import client as slurm
from mtp_lightning.grid.spec.resources import Resources

FOLDER = "submissions"
LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class Submission:
    """One job array. `cells` are signatures, by array index."""

    token: str
    grid: str
    cells: tuple[str, ...]
    resources: Resources
    submitted_at: float
    snapshot: str | None = None
    """Folder of the code that its jobs run."""
    job: str | None = None
    """Slurm's id. None: not known yet."""
    over: bool = False
    """None of it waits or runs any more, or sbatch never took it."""

    @property
    def job_name(self) -> str:
        return f"mtp-{self.grid}-{self.token}"

    def element(self, index: int) -> str:
        assert self.job is not None
        return f"{self.job}_{index}"

    @classmethod
    def read(cls, path: Path) -> "Submission | None":
        raw = read_json(path)
        if raw is None:
            return None
        known = {field.name: raw[field.name] for field in dataclasses.fields(cls) if field.name in raw}
        return cls(**{**known, "cells": tuple(raw["cells"]), "resources": Resources(**raw["resources"])})


@dataclass(frozen=True)
class Place:
    """Where a cell was submitted to last: an element of a job array."""

    submission: Submission
    index: int

    @property
    def element(self) -> str:
        return self.submission.element(self.index)

    def of(self, live: Mapping[str, slurm.Element]) -> slurm.Element | None:
        """What waits or runs here. Ids alone would not do: a controller that forgets counts from 1 again."""
        found = live.get(self.element)
        return found if found is not None and found.job_name == self.submission.job_name else None


class Submissions:
    """All submissions of one runs folder. What changes them needs the lock."""

    def __init__(self, runs: Path) -> None:
        self.folder = runs / FOLDER
        self._lock: FileLock | None = None

    def read(self) -> list[Submission]:
        """Oldest first."""
        found = [Submission.read(path) for path in self.folder.glob("*.json")]
        return sorted((one for one in found if one is not None), key=lambda one: (one.submitted_at, one.token))

    def write(self, submission: Submission) -> None:
        write_json(self.folder / f"{submission.token}.json", asdict(submission))

    def drop(self, submission: Submission) -> None:
        (self.folder / f"{submission.token}.json").unlink()

    def own_folder(self, submission: Submission) -> Path:
        return self.folder / submission.token

    def output(self, place: Place, task: int = 0) -> Path:
        """Slurm's own output file of a task, named by submitit."""
        return self.own_folder(place.submission) / f"{place.element}_{task}_log.out"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One submitter at a time. sbatch holds the lock too: nobody looks for its job while it may yet appear."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock, deadline = FileLock(self.folder / "lock"), time.monotonic() + LOCK_SECONDS
        while not self._lock.acquire():
            if time.monotonic() > deadline:
                raise InputError(f"{self.folder}: another `mtp grid submit` is at work there, and does not end")
            time.sleep(0.1)
        try:
            yield
        finally:
            self._lock.release()

    @property
    def lock_descriptor(self) -> int:
        assert self._lock is not None, "the lock is not held"
        return self._lock.descriptor

    def look(self, settle: bool = True) -> dict[str, slurm.Element]:
        """What waits or runs, by element; put in order too, if wished and unless somebody else is at it."""
        if not self.folder.is_dir():
            return {}
        lock = FileLock(self.folder / "lock")
        if not settle or not lock.acquire():
            return slurm.elements(one.job_name for one in self.read() if not one.over)
        try:
            return self.settle()
        finally:
            lock.release()

    def places(self, live: Mapping[str, slurm.Element]) -> dict[str, Place]:
        """Signature -> where it waits or runs, or else where it was submitted to last."""
        found: dict[str, Place] = {}
        ids = {element.job_name: element.id.split("_")[0] for element in live.values()}
        for noted in self.read():
            # Not noted yet, by a submitter that was killed: the name tells the job.
            one = noted if noted.job else replace(noted, job=ids.get(noted.job_name))
            if one.job is None:
                continue
            for index, name in enumerate(one.cells):
                if name not in found or found[name].of(live) is None:
                    found[name] = Place(one, index)
        return found

    def strays(self, grid: str, known: Collection[str], live: Mapping[str, slurm.Element]) -> list[slurm.Element]:
        """What waits or runs of a grid whose file has changed since, and does not have these cells any more."""
        places = self.places(live).items()
        gone = [place for name, place in places if name not in known and place.submission.grid == grid]
        return [element for place in gone if (element := place.of(live)) is not None]

    def settle(self) -> dict[str, slurm.Element]:
        """Adopt jobs whose submitter was killed before it could note them, forget intents that came to nothing, note
        what is over. Returns what waits or runs, by element. Needs the lock."""
        for one in self.read():
            if one.job is None and not one.over:
                job = slurm.find_job(one.job_name, one.submitted_at)
                self.write(replace(one, job=job, over=job is None))
        open_ones = [one for one in self.read() if not one.over]
        live = slurm.elements([one.job_name for one in open_ones])
        names = {element.job_name for element in live.values()}
        for one in open_ones:
            if one.job_name not in names:
                self.write(replace(one, over=True))
        return live
