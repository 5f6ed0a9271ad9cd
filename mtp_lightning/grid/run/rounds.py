"""Runs a grid whose cells follow from its results: round by round, until no more come, or go on from a gate."""

from collections.abc import Callable, Sequence

from mtp_lightning.grid.run.cost import Expected
from mtp_lightning.grid.run.launch import LaunchResult, run_here
from mtp_lightning.grid.run.process import Outcome
from mtp_lightning.grid.spec.cells import Cell


def run_rounds(to_run: Callable[[], Sequence[Cell]], of: int, workers: int | None, expected: Expected) -> LaunchResult:
    """Each cell once, or once to its gate and once from there.

    Args:
        to_run: what the grid lacks now; asked again after each round.
        of: how many cells the grid has.
        expected: how long cells take, as far as that is known.
    """
    outcomes: dict[str, Outcome] = {}
    begun: set[tuple[str, int | None]] = set()
    while todo := [cell for cell in to_run() if (cell.signature, cell.pause_at) not in begun]:
        begun |= {(cell.signature, cell.pause_at) for cell in todo}
        known = len({*outcomes, *(cell.signature for cell in todo)})
        launched = run_here(todo, max(of, known), workers, expected)
        outcomes |= launched.outcomes
        if launched.stopped_by is not None:
            return LaunchResult(outcomes, launched.stopped_by)
    return LaunchResult(outcomes)
