"""What the commands of a grid show: results on standard output and in files for programs; while cells run, on standard
error, a live table on a terminal and a line now and then elsewhere."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mtp_lightning.config.cell import command
from mtp_lightning.errors import InputError
from mtp_lightning.files import write_text
from mtp_lightning.grid.spec.grid_spec import experiment_name
from mtp_lightning.secrets import mask
from mtp_lightning.tracking.store import check_uri, default_tracking_uri
from mtp_lightning.units import duration, quantity

PLAIN_SECONDS = 10.0
_ROWS = 20
_STYLES = {
    "running": "bold cyan",
    "finished": "green",
    "failed": "bold red",
    "damaged": "bold red",
    "interrupted": "yellow",
}


def say(what: RenderableType, error: bool = False) -> None:
    """Results go to standard output, messages about the work to standard error."""
    stream = sys.stderr if error else sys.stdout
    console = Console(file=stream, soft_wrap=isinstance(what, str), highlight=False, markup=False)
    if not console.is_terminal and not isinstance(what, str):
        console.width = max(console.width, 200)  # a file needs no wrapping
    console.print(mask(what) if isinstance(what, str) else what)


def write_table(path: str | None, value: Mapping[str, Any]) -> None:
    """A table for programs: `--json`."""
    if path is None:
        return
    try:
        write_text(Path(path), json.dumps(value, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def ui_command(runs: Path, grid: str) -> str:
    """The command that opens a grid's page in MLflow."""
    folder = runs.relative_to(Path.cwd()) if runs.is_relative_to(Path.cwd()) else runs
    at = () if folder == Path("runs") else ("--runs", str(folder))
    return command("ui", *at, "--experiment", experiment_name(grid))


def writable(folder: Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        InputError: nothing can be written there, or MLflow's store cannot be.
    """
    check_uri(default_tracking_uri(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {error.strerror}") from error
    return folder


@dataclass(frozen=True)
class Line:
    """One cell now. `state` is a State's value, or `waiting`, or `elsewhere` (another launcher runs it)."""

    label: str
    state: str
    step: int | None = None
    max_steps: int | None = None
    phase: str | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None

    @property
    def share(self) -> float:
        if self.state in ("finished", "failed", "damaged"):
            return 1.0
        return min(1.0, self.step / self.max_steps) if self.step and self.max_steps else 0.0


@runtime_checkable
class Display(Protocol):
    def note(self, text: str) -> None:
        """Something that must not be missed: a failure, a warning."""

    def update(self, lines: Sequence[Line], seconds_left: float | None) -> None: ...

    def close(self) -> None: ...


def open_display(console: Console) -> Display:
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


class LiveDisplay:
    def __init__(self, console: Console) -> None:
        self._started = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def note(self, text: str) -> None:
        self._live.console.print(Text(text, style="yellow"))

    def update(self, lines: Sequence[Line], seconds_left: float | None) -> None:
        self._live.update(_screen(lines, seconds_left, time.monotonic() - self._started), refresh=True)

    def close(self) -> None:
        self._live.stop()


class PlainDisplay:
    """At most one summary in ten seconds, and one line whenever a cell changes its state."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = self._last = time.monotonic()
        self._states: dict[str, str] = {}

    def note(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def update(self, lines: Sequence[Line], seconds_left: float | None) -> None:
        now = time.monotonic()
        clock = f"[{duration(now - self._started):>7}]"
        for line in lines:
            if line.state != self._states.setdefault(line.label, "waiting"):
                self._states[line.label] = line.state
                self.note(f"{clock} {line.label}: {line.state}")
        if now - self._last >= PLAIN_SECONDS:
            self._last = now
            running = "; ".join(f"{line.label} {_facts(line)}" for line in lines if line.state == "running")
            left = f"; about {duration(seconds_left)} left" if seconds_left is not None else ""
            self.note(f"{clock} {summary([line.state for line in lines])}{left}{': ' + running if running else ''}")

    def close(self) -> None:
        pass


def summary(states: Sequence[str]) -> str:
    """`6 cells: 3 finished, 2 running, 1 waiting`"""
    return f"{len(states)} cell{'s' if len(states) != 1 else ''}: {counts(states)}"


NAME_WIDTH = 20
"""Of cells in a table, at least: long names are broken, and what stands beside them is not cut."""


def counts(states: Sequence[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(states).most_common())


def _facts(line: Line) -> str:
    steps = f"{line.step}/{line.max_steps}" if line.step is not None else "starting"
    loss = f" loss {line.loss:.3f}" if line.loss is not None else ""
    speed = f" {quantity(line.tokens_per_second)} tokens/s" if line.tokens_per_second is not None else ""
    return f"{steps}{loss}{speed}"


def _screen(lines: Sequence[Line], seconds_left: float | None, elapsed: float) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("cell", overflow="fold", min_width=NAME_WIDTH)
    table.add_column("state", no_wrap=True)
    for name in ("step", "loss", "tokens/s", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = lines if len(lines) <= _ROWS else [line for line in lines if line.state not in ("waiting", "finished")]
    for line in shown[:_ROWS]:
        phase = f" ({line.phase})" if line.phase and line.state == "running" else ""
        table.add_row(
            Text(line.label),
            Text(line.state + phase, style=_STYLES.get(line.state, "dim")),
            f"{line.step}/{line.max_steps}" if line.step is not None else "",
            f"{line.loss:.3f}" if line.loss is not None else "",
            quantity(line.tokens_per_second) if line.tokens_per_second is not None else "",
            duration(line.seconds_left) if line.seconds_left is not None and line.state == "running" else "",
        )
    share = sum(line.share for line in lines) / max(1, len(lines))
    left = f", about {duration(seconds_left)} left" if seconds_left is not None else ""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=1.0, completed=share, width=20),
        f"{share:4.0%}",
        f"{counts([line.state for line in lines])}; {duration(elapsed)}{left}",
    )
    return Group(table, bar)
