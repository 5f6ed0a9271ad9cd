"""What `run` or `submit` would do with the cells of a grid, as a table and for programs. Reads only."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from mtp_lightning.grid.run.attempts import newest_checkpoint
from mtp_lightning.grid.run.cost import Cost
from mtp_lightning.grid.run.display import NAME_WIDTH
from mtp_lightning.grid.run.state import State
from mtp_lightning.grid.run.status import CellStatus
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.units import duration, quantity, size

ACTIONS = {
    State.MISSING: "run",
    State.QUEUED: "wait for it",
    State.FAILED: "run again",
    State.INTERRUPTED: "run again",
    State.AT_GATE: "go on",
    State.STOPPED: "nothing",
    State.RUNNING: "wait for it",
    State.FINISHED: "nothing",
    State.DAMAGED: "leave it alone",
    State.BLOCKED: "run after its parent",
}
_TO_RUN = (State.MISSING, State.FAILED, State.INTERRUPTED, State.AT_GATE, State.BLOCKED)


def is_to_run(row: CellStatus) -> bool:
    """Whether `run` would start it now."""
    return row.state in _TO_RUN and row.gate is None


def _action(row: CellStatus) -> str:
    if row.gate is not None and row.state in _TO_RUN:
        return "wait at the gate"
    if row.state in (State.FAILED, State.INTERRUPTED) and newest_checkpoint(row.cell.directory) is not None:
        return "go on"
    if row.state is State.MISSING and row.parent is not None and row.parent.state is not State.FINISHED:
        return ACTIONS[State.BLOCKED]
    return ACTIONS[row.state]


def plan_table(spec: GridSpec, rows: Sequence[CellStatus], found: Sequence[Cost]) -> Table:
    table = Table(title=f"{spec.name}: {len(rows)} cells", title_justify="left")
    table.add_column("cell", overflow="fold", min_width=NAME_WIDTH)
    for name in ("signature", "state", "run would"):
        table.add_column(name, no_wrap=True)
    for name in ("parameters", "tokens", "FLOPs", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, cost in zip(rows, found):
        label = row.cell.label + (" (baseline)" if row.cell.baseline else "")
        begun = f"\n  from {row.cell.parent_label}" if row.cell.parent_label else ""
        same = begun + "".join(f"\n= {alias.label}" for alias in row.cell.aliases)
        seconds = "?" if cost.seconds is None else duration(cost.seconds)
        table.add_row(
            Text(label).append(same, style="dim"),
            row.cell.signature,
            row.state.value,
            _action(row),
            quantity(cost.size.parameters),
            _known(cost.size.tokens, quantity),
            _known(cost.size.flops, quantity),
            _known(cost.memory_bytes, size),
            Text(seconds, style="" if cost.basis == "measured" else "dim"),
        )
    return table


def _known(value: int | None, shown: Callable[[int], str]) -> str:
    return "?" if value is None else shown(value)


def plan_json(row: CellStatus, cost: Cost) -> dict[str, Any]:
    """Everything the table says about a cell, for `--json`."""
    return {**row.json(), "action": _action(row), "cost": cost.json()}
