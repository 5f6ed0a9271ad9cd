"""MLflow runs of cells that were killed, and say RUNNING: set to KILLED, where it is certain that nobody is at work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from mtp_lightning.files import FileLock
from mtp_lightning.grid.run.state import LOCK, CellFiles, State
from mtp_lightning.grid.run.status import CellStatus
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.tracking.store import has_store


def settle_dead(rows: Sequence[CellStatus], uri: str) -> str | None:
    """Ask MLflow about the cells whose last attempt was killed, each once, and settle them; what went wrong, if
    anything did: that is no reason not to go on."""
    dead = [row for row in rows if _was_killed(row.state, row.files)]
    if not dead or not has_store(uri):
        return None
    try:
        for row in dead:
            _settle(row, uri)
    except Exception as error:  # MLflow raises what its store raises
        return f"MLflow: {type(error).__name__}: {error}"
    return None


def _was_killed(state: State, files: CellFiles) -> bool:
    """A run that ends by itself closes its MLflow run; its exit status is then 0 or above."""
    if state not in (State.INTERRUPTED, State.FAILED) or files.run_id is None:
        return False
    status = files.status
    return status is None or (not status.settled and (status.returncode is None or status.returncode < 0))


def _settle(row: CellStatus, uri: str) -> None:
    from mtp_lightning.tracking.begin import settle_by_id

    over = [row.submitted.id] if row.submitted is not None and row.queued is None else []
    with _left_alone(row.cell) as files:
        if files is None or files.run_id is None or not settle_by_id(uri, files.run_id, row.cell.directory, over):
            return
        if files.status is not None:
            replace(files.status, settled=True).write(row.cell.directory)


@contextmanager
def _left_alone(cell: Cell) -> Iterator[CellFiles | None]:
    """The cell's files while nobody may start it; None if somebody has meanwhile."""
    lock = FileLock(cell.directory / LOCK)
    if not lock.acquire():
        yield None
        return
    try:
        files = CellFiles.read(cell.directory)
        yield files if _was_killed(files.state_if_over, files) else None
    finally:
        lock.release()
