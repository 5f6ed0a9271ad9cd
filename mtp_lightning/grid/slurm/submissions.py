"""The record of what was submitted to Slurm: one JSON file a job array in `runs/submissions`, named by its token.

The file is written before sbatch is called (an intent) and completed with the job's id after it. The token is part of
the job's name, so that the job is found again if the submitter was killed in between. Next to the file is a folder of
the same name with the batch script, the cells as the job reads them, and Slurm's output.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, FileLock, read_record, write_json
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
    """Folder of the code that its jobs run; None: the installed code."""
    job: str | None = None
    """Slurm's id. None: not known yet."""
    over: bool = False
    """None of its jobs waits or runs any more, or Slurm never accepted it."""

    @property
    def job_name(self) -> str:
        return f"mtp-{self.grid}-{self.token}"

    @classmethod
    def read(cls, path: Path) -> "Submission | None":
        """None where it has gone meanwhile.

        Raises:
            DamagedError: it cannot be used.
        """
        return read_record(cls, path)


@dataclass(frozen=True)
class ArrayElement:
    """One element of a submitted job array: one cell."""

    submission: Submission
    index: int

    @property
    def id(self) -> str:
        """As Slurm writes it: `12_3`."""
        assert self.submission.job is not None
        return f"{self.submission.job}_{self.index}"

    def entry(self, queue: Mapping[str, slurm.QueueEntry]) -> slurm.QueueEntry | None:
        """Its entry in the queue. An id alone is not enough: a controller that lost its state counts from 1 again."""
        found = queue.get(self.id)
        return found if found is not None and found.job_name == self.submission.job_name else None


class Submissions:
    """All submissions of one runs folder. What changes them needs the lock."""

    def __init__(self, runs: Path) -> None:
        self.folder = runs / FOLDER
        self._lock: FileLock | None = None

    def read(self) -> list[Submission]:
        """Oldest first, without those that are damaged."""
        return self._read()[0]

    @property
    def problems(self) -> list[str]:
        """What is wrong with the records that are damaged. Their jobs are not known, and may wait or run."""
        return self._read()[1]

    def check(self) -> None:
        """
        Raises:
            InputError: a record is damaged, so that cells may be in the queue without it being known.
        """
        if problems := self.problems:
            raise InputError("\n".join(problems))

    def _read(self) -> tuple[list[Submission], list[str]]:
        found, problems = [], []
        for path in sorted(self.folder.glob("*.json")):
            try:
                one = Submission.read(path)
            except DamagedError as error:
                problems.append(
                    f"{error}: nothing is known of its jobs; `squeue` shows whether any with {path.stem} in the name "
                    "wait or run; repair the file, or cancel them and move it away"
                )
            else:
                found += [one] if one is not None else []
        return sorted(found, key=lambda one: (one.submitted_at, one.token)), problems

    def write(self, submission: Submission) -> None:
        write_json(self.folder / f"{submission.token}.json", asdict(submission))

    def drop(self, submission: Submission) -> None:
        (self.folder / f"{submission.token}.json").unlink()

    def own_folder(self, submission: Submission) -> Path:
        return self.folder / submission.token

    def output(self, element: ArrayElement, task: int = 0) -> Path:
        """Slurm's own output file of a task, named by submitit."""
        return self.own_folder(element.submission) / f"{element.id}_{task}_log.out"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One submitter at a time. sbatch holds the lock too: nobody looks for its job while it may still appear."""
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

    def read_queue(self, update: bool = True) -> dict[str, slurm.QueueEntry]:
        """What waits or runs, by id.

        Args:
            update: bring the record up to date too, unless another process is doing so.
        """
        if not self.folder.is_dir():
            return {}
        lock = FileLock(self.folder / "lock")
        if not update or not lock.acquire():
            return slurm.read_queue(one.job_name for one in self.read() if not one.over)
        try:
            return self.update()
        finally:
            lock.release()

    def update(self) -> dict[str, slurm.QueueEntry]:
        """Record the jobs whose submitter was killed before it could, drop intents that led to no job, note what is
        over. Returns what waits or runs, by id. Needs the lock."""
        for one in self.read():
            if one.job is None and not one.over:
                job = slurm.find_job(one.job_name, one.submitted_at)
                self.write(replace(one, job=job, over=job is None))
        open_ones = [one for one in self.read() if not one.over]
        queue = slurm.read_queue([one.job_name for one in open_ones])
        names = {entry.job_name for entry in queue.values()}
        for one in open_ones:
            if one.job_name not in names:
                self.write(replace(one, over=True))
        return queue

    def elements(self, queue: Mapping[str, slurm.QueueEntry]) -> dict[str, ArrayElement]:
        """Signature -> the element that waits or runs, or else the one that was submitted last."""
        found: dict[str, ArrayElement] = {}
        ids = {entry.job_name: entry.id.split("_")[0] for entry in queue.values()}
        for noted in self.read():
            # An id that is not recorded, as the submitter was killed, is found by the job's name.
            one = noted if noted.job else replace(noted, job=ids.get(noted.job_name))
            if one.job is None:
                continue
            for index, name in enumerate(one.cells):
                if name not in found or found[name].entry(queue) is None:
                    found[name] = ArrayElement(one, index)
        return found

    def not_in_file(
        self, grid: str, known: Collection[str], queue: Mapping[str, slurm.QueueEntry]
    ) -> list[slurm.QueueEntry]:
        """What waits or runs of a grid whose file has changed since, and no longer has these cells."""
        elements = self.elements(queue).items()
        gone = [element for name, element in elements if name not in known and element.submission.grid == grid]
        return [entry for element in gone if (entry := element.entry(queue)) is not None]
