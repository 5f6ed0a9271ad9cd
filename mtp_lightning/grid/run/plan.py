"""What `run` or `submit` would do with the cells of a grid as they stand, and what that costs. Reads only."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from mtp_lightning.grid.run.cost import Cost
from mtp_lightning.grid.run.state import CHECKPOINTS, State
from mtp_lightning.grid.run.status import Standing
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.units import duration, quantity, size

ACTIONS = {
    State.MISSING: "run",
    State.QUEUED: "wait for it",
    State.FAILED: "run again",
    State.INTERRUPTED: "run again",
    State.RUNNING: "wait for it",
    State.FINISHED: "nothing",
}
TO_RUN = (State.MISSING, State.FAILED, State.INTERRUPTED)


def action(row: Standing) -> str:
    saved = row.cell.directory / CHECKPOINTS
    if row.state in (State.FAILED, State.INTERRUPTED) and saved.is_dir() and any(saved.iterdir()):
        return "go on"
    return ACTIONS[row.state]


def plan_table(spec: GridSpec, rows: Sequence[Standing], found: Sequence[Cost]) -> Table:
    table = Table(title=f"{spec.name}: {len(rows)} cells", title_justify="left")
    for name in ("cell", "signature", "state", "run would"):
        table.add_column(name, no_wrap=True)
    for name in ("parameters", "tokens", "FLOPs", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, cost in zip(rows, found):
        label = row.cell.label + (" (baseline)" if row.cell.baseline else "")
        same = "".join(f"\n= {alias.label}" for alias in row.cell.aliases)
        seconds = "?" if cost.seconds is None else duration(cost.seconds)
        table.add_row(
            Text(label).append(same, style="dim"),
            row.cell.signature,
            row.state.value,
            action(row),
            quantity(cost.size.parameters),
            _known(cost.size.tokens, quantity),
            _known(cost.size.flops, quantity),
            _known(cost.size.memory_bytes, size),
            Text(seconds, style="" if cost.basis == "measured" else "dim"),
        )
    return table


def _known(value: int | None, shown: Callable[[int], str]) -> str:
    return "?" if value is None else shown(value)


def row_json(row: Standing, cost: Cost) -> dict[str, Any]:
    """Everything the table says about a cell, for `--json`."""
    return {**row.json(), "action": action(row), "cost": cost.json()}
