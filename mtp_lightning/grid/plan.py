"""The cells of a grid as they stand: what each is, and what `run` would do with it. Reads only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mtp_lightning.grid.cells import Cell, load_cells
from mtp_lightning.grid.cost import Cost
from mtp_lightning.grid.spec import GridSpec
from mtp_lightning.grid.state import CHECKPOINTS, Progress, Result, State, Status, cell_state, failure_reason
from mtp_lightning.grid.tools import GridTools
from mtp_lightning.grid.units import duration, quantity, size

ACTIONS = {
    State.MISSING: "run",
    State.FAILED: "run again",
    State.INTERRUPTED: "run again",
    State.RUNNING: "wait for it",
    State.FINISHED: "nothing",
}


@dataclass(frozen=True)
class Planned:
    cell: Cell
    state: State

    @property
    def action(self) -> str:
        saved = self.cell.directory / CHECKPOINTS
        if self.state in (State.FAILED, State.INTERRUPTED) and saved.is_dir() and any(saved.iterdir()):
            return "go on"
        return ACTIONS[self.state]


def plan_grid(
    tools: GridTools, grid: str, runs: str, overrides: Mapping[str, Any] | None = None
) -> tuple[GridSpec, list[Planned]]:
    spec, cells = load_cells(Path(grid), tools.find_config, tools.resolve, Path(runs).absolute(), overrides)
    tools.remember()
    return spec, [Planned(cell, cell_state(cell.directory)) for cell in cells]


def plan_table(spec: GridSpec, planned: Sequence[Planned], found: Sequence[Cost]) -> Table:
    table = Table(title=f"{spec.name}: {len(planned)} cells", title_justify="left")
    for name in ("cell", "signature", "state", "run would"):
        table.add_column(name, no_wrap=True)
    for name in ("parameters", "tokens", "FLOPs", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for item, cost in zip(planned, found):
        label = item.cell.label + (" (baseline)" if item.cell.baseline else "")
        same = "".join(f"\n= {alias.label}" for alias in item.cell.aliases)
        seconds = "?" if cost.seconds is None else duration(cost.seconds)
        table.add_row(
            Text(label).append(same, style="dim"),
            item.cell.signature,
            item.state.value,
            item.action,
            quantity(cost.size.parameters),
            _known(cost.size.tokens, quantity),
            _known(cost.size.flops, quantity),
            _known(cost.size.memory_bytes, size),
            Text(seconds, style="" if cost.basis == "measured" else "dim"),
        )
    return table


def _known(value: int | None, shown: Callable[[int], str]) -> str:
    return "?" if value is None else shown(value)


def status_table(spec: GridSpec, planned: Sequence[Planned]) -> Table:
    table = Table(title=f"{spec.name}: {len(planned)} cells", title_justify="left")
    table.add_column("cell", no_wrap=True)
    table.add_column("signature", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("attempt", "step", "loss", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why")
    for item in planned:
        facts = row_json(item)
        speed = facts["tokens_per_second"]
        table.add_row(
            Text(item.cell.label),
            item.cell.signature,
            item.state.value,
            _text(facts["attempt"]),
            "" if facts["step"] is None else f"{facts['step']}/{facts['max_steps'] or '?'}",
            "" if facts["loss"] is None else f"{facts['loss']:.3f}",
            "" if speed is None else quantity(speed),
            Text(_text(facts["reason"])),
        )
    return table


def row_json(item: Planned) -> dict[str, Any]:
    """Everything the tables say about a cell, for `--json`."""
    cell, directory = item.cell, item.cell.directory
    status, progress, result = Status.read(directory), Progress.read(directory), Result.read(directory)
    return {
        "label": cell.label,
        "values": dict(cell.values),
        "seed": cell.seed,
        "signature": cell.signature,
        "group": cell.group,
        "baseline": cell.baseline,
        "same_as": [alias.label for alias in cell.aliases],
        "directory": str(directory),
        "state": item.state.value,
        "action": item.action,
        "attempt": status.attempt if status else None,
        "step": result.step if result else progress.step if progress else None,
        "max_steps": progress.max_steps if progress else result.step if result else None,
        "loss": progress.loss if progress else None,
        "tokens_per_second": progress.tokens_per_second if progress else None,
        "reason": failure_reason(directory) if item.state in (State.FAILED, State.INTERRUPTED) else None,
    }


def _text(value: object) -> str:
    return "" if value is None else str(value)
