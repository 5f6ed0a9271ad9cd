"""What the grid needs from the rest of the house, handed in so that this room imports none of it."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mtp_lightning.config.run_size import Size
from mtp_lightning.grid.report.mlflow_page import experiment_name, record_charts
from mtp_lightning.grid.run.process import Command, Materialise
from mtp_lightning.grid.spec.cells import Cell, Resolver, load_cells
from mtp_lightning.grid.spec.grid_spec import FindConfig, GridSpec


@runtime_checkable
class Tracking(Protocol):
    """The tracking store of one runs folder, as far as a grid needs it."""

    def prepare(self, spec: GridSpec) -> None:
        """What the grid's page shows before its first report."""


@dataclass(frozen=True)
class MlflowTracking:
    """Loads MLflow at the first question, which takes seconds."""

    uri: str

    def prepare(self, spec: GridSpec) -> None:
        record_charts(self.uri, spec)


def default_tracking(runs: Path) -> Tracking:
    from mtp_lightning.tracking.store import default_tracking_uri

    return MlflowTracking(default_tracking_uri(runs))


def default_ui_command(runs: Path, grid: str) -> str:
    at = "" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}"
    return f"mtp ui{at} --experiment {experiment_name(grid)}"


@dataclass(frozen=True)
class GridTools:
    """Built by the command line."""

    resolve: Resolver
    materialise: Materialise
    command: Command
    find_config: FindConfig
    measure: Callable[[Mapping[str, Any]], Size]
    """How large a run of a configuration is; of configurations that `resolve` gave."""
    remember: Callable[[], None] = lambda: None
    """Called when all cells are resolved: the next command may be quicker."""
    tracking: Callable[[Path], Tracking] = default_tracking
    """The runs folder -> its tracking store."""
    ui_command: Callable[[Path, str], str] = default_ui_command
    """(runs folder, grid name) -> the command that opens the MLflow UI on the grid's page."""

    def load(self, grid: str, runs: str, overrides: Mapping[str, Any] | None = None) -> tuple[GridSpec, list[Cell]]:
        """A grid file and its cells, all checked.

        Args:
            overrides: on top of the file's.

        Raises:
            InputError: everything that is wrong with them.
        """
        loaded = load_cells(Path(grid), self.find_config, self.resolve, Path(runs).absolute(), overrides)
        self.remember()
        return loaded

    def prepare_tracking(self, spec: GridSpec, runs: Path) -> str | None:
        """Do what can be done before the first cell, so that the link to the charts works while cells run; what went
        wrong, which is no reason not to run."""
        try:
            self.tracking(runs).prepare(spec)
        except Exception as error:  # MLflow raises what its store raises
            return f"MLflow: {type(error).__name__}: {error}"
        return None
