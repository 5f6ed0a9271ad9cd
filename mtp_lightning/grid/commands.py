"""`mtp grid ...`: every command is a method of `Grid`, and returns the exit status.

One class, so that help and arguments of all commands are its methods', and longer than other files for it. Bad input
is an InputError, raised before anything is written; a Slurm that fails is an UnavailableError.
"""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mtp_lightning.config.cell import command
from mtp_lightning.config.keys.missing_files import said_of_missing
from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.errors import PREEMPTED, InputError, UnavailableError
from mtp_lightning.files import cache_folder, check_json
from mtp_lightning.grid.report.equal_training import parse_at
from mtp_lightning.grid.report.forms import mlflow_page
from mtp_lightning.grid.report.stages import report_stages
from mtp_lightning.grid.report.tuning import Tuning, tuned
from mtp_lightning.grid.run import logs
from mtp_lightning.grid.run.cost import Cost, Expected, Total, check_budget, costs, seconds_left
from mtp_lightning.grid.run.display import say, summary, writable, write_table
from mtp_lightning.grid.run.gate import Gating, gated
from mtp_lightning.grid.run.plan import is_to_run, plan_json, plan_table
from mtp_lightning.grid.run.rounds import run_rounds
from mtp_lightning.grid.run.settle import settle_dead
from mtp_lightning.grid.run.state import State, cell_state
from mtp_lightning.grid.run.status import (
    ACTIVE,
    CellStatus,
    read_status,
    status_rows,
    status_table,
    watch_status,
)
from mtp_lightning.grid.slurm import client as slurm
from mtp_lightning.grid.slurm.submissions import Submissions
from mtp_lightning.grid.slurm.submit import fill_in, submit_cells, submitted_text, to_submit
from mtp_lightning.grid.spec.cells import Cell, check_precision, find_cell, load_cells
from mtp_lightning.grid.spec.grid_spec import At, GridSpec
from mtp_lightning.tracking.store import default_tracking_uri

INTERRUPTED = 130


class Grid:
    def __init__(self, grid: str, *, overrides: dict[str, Any] | None = None, runs: str = "runs") -> None:
        """The arguments that all commands share.

        Args:
            grid: The grid file.
            overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
            runs: Folder of the cells; for Slurm on a disk that the nodes share.
        """
        self.file, self.overrides, self.runs = grid, overrides, Path(runs)
        self.folder = self.runs.absolute()
        self.submissions = Submissions(self.folder)

    def plan(self, *, json: str | None = None) -> int:
        """Check every cell of a grid and show what would happen to it. Writes nothing.

        Args:
            json: Write the table to this file too.
        """
        check_json(json, grid=self.file)
        check_precision(self.spec, self._loaded[1])
        self._without_record()
        rows, slurm_problem, _ = read_status(self.cells, self.folder, update=False)
        rows = self.gating.show(rows)
        say(plan_table(self.spec, rows, self.costs))
        to_run = sum(map(is_to_run, rows))
        say(f"{summary([row.state.value for row in rows])}; {to_run} to run")
        total, left = Total.of(self.all_costs), Total.of(self.all_costs, left=True)
        self._say_what_follows("counted in the sums")
        say(f"in all {total}")
        if 0 < to_run < len(rows):
            say(f"still to come {left}")
        self._warn(slurm_problem)
        self._warn_of_missing([row.cell for row in rows if is_to_run(row)])
        sums = {"total": total.amounts, "left": left.amounts, "unknown": total.unknown}
        table = [plan_json(*pair) for pair in zip(rows, self.costs)]
        write_table(json, {"grid": self.spec.name, "cells": table, **sums})
        check_budget(self.spec, total)
        return 0

    def run(self, *, workers: int | None = None, json: str | None = None) -> int:
        """Run the cells of a grid that are not finished, then report. Ctrl-C leaves everything resumable.

        Args:
            workers: Cells at a time. Default: as many as the GPUs are enough for; without GPUs one a core, four at
                most.
            json: Write the report's table to this file too.
        """
        if workers is not None and workers < 1:
            raise InputError(f"workers: {workers} is not a number of processes; give 1 or more")
        check_json(json, grid=self.file)
        check_precision(self.spec, self._loaded[1])
        check_budget(self.spec, Total.of(self.all_costs))
        if missing := said_of_missing(cell.config for cell in self._to_run()):
            raise InputError(missing)
        writable(self.folder)
        if self._to_run():
            self._prepare_charts()
        expected = Expected(lambda: seconds_left(self.cells, self._loaded[2]))
        launched = run_rounds(self._to_run, len(self.cells), workers, expected)
        if launched.stopped_by is not None:
            ended = summary([outcome.state.value for outcome in launched.outcomes.values()])
            say(f"stopped ({ended}); the same command continues where this one ended", error=True)
            return INTERRUPTED if launched.stopped_by == signal.SIGINT else PREEMPTED
        if not launched.outcomes:
            ended = f"{len(self.gating.compared)} cells are finished"
            stopped = len(self.cells) - len(self.gating.compared)
            say(f"all {ended}{f', {stopped} stopped by the gate' if stopped else ''}: nothing to run", error=True)
        elif all(cell_state(cell.directory) is State.MISSING for cell in self.cells):
            say("no cell could be started: there is nothing to report", error=True)
            return 1
        recorded = self._report(None, json, again=bool(launched.outcomes))
        return 1 if self._to_run() or self.tuning.later or not recorded else 0

    def report(self, *, at: str | None = None, out: str | None = None, json: str | None = None) -> int:
        """Compare the finished cells of a grid: verdict, table, figure; on the terminal, as one page and in MLflow.

        With a budget, running or interrupted cells take part as soon as they have come so far.

        Args:
            at: Compare at step=1000, tokens=1e6, bytes=1e6 (of text), flops=1e12 or seconds=600 (of training) instead
                of the end; or at common, the last step that all cells have.
            out: Folder for report.html, report.md, results.csv, figure.png and verdict.json. Default: reports/NAME in
                the runs folder.
            json: Write the table to this file too.
        """
        check_json(json, grid=self.file)
        budget = None if at is None else parse_at(at)
        self._warn_of_missing([cell for cell in self._loaded[1] if cell_state(cell.directory) is State.MISSING])
        return 0 if self._report(out, json, again=True, at=budget) else 1

    def submit(
        self,
        *,
        max_parallel: int | None = None,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
    ) -> int:
        """Submit the cells of a grid that are missing or interrupted to Slurm, and return at once.

        Args:
            max_parallel: Cells of each job array at a time. Default: as many as Slurm lets run.
            partition: Where the grid file names none.
            account: Where the grid file names none.
            qos: Where the grid file names none.
        """
        defaults = {"partition": partition, "account": account, "qos": qos}
        return self._submit(max_parallel, defaults, (State.MISSING, State.INTERRUPTED, State.AT_GATE))

    def resume(
        self,
        *,
        max_parallel: int | None = None,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        workers: int | None = None,
    ) -> int:
        """Do what is left of a grid: cells missing, failed or interrupted. On Slurm if it was submitted, else here.

        Args:
            max_parallel: On Slurm: cells of each job array at a time.
            partition: On Slurm: where the grid file names none.
            account: On Slurm: where the grid file names none.
            qos: On Slurm: where the grid file names none.
            workers: Here: cells at a time.
        """
        self.submissions.check()
        self._settle(read_status(self.cells, self.folder).rows)
        if not any(one.grid == self.spec.name for one in self.submissions.read()):
            return self.run(workers=workers)
        defaults = {"partition": partition, "account": account, "qos": qos}
        return self._submit(max_parallel, defaults, (State.MISSING, State.INTERRUPTED, State.AT_GATE, State.FAILED))

    def status(self, *, watch: bool = False, json: str | None = None) -> int:
        """Show how far each cell of a grid is, from the cells' own files, then from Slurm.

        Args:
            watch: Keep showing it until nothing runs or waits any more.
            json: Write the table to this file too.
        """
        check_json(json, grid=self.file)
        rows, slurm_problem, queue = (watch_status if watch else read_status)(self.tuning.cells, self.folder)
        self._settle(rows)
        if watch:
            self._read_again()
        self._without_record()
        rows = self.gating.show(rows)
        say(status_table(f"{self.spec.name}: {len(rows)} cells", rows))
        say(summary([row.state.value for row in rows]))
        self._say_what_follows()
        if others := self.submissions.not_in_file(self.spec.name, [cell.signature for cell in self.cells], queue):
            say(f"and in Slurm, though no longer in {self.file}: {', '.join(entry.id for entry in others)}")
        self._warn(slurm_problem)
        self._warn_of_missing([row.cell for row in rows if row.state is State.MISSING])
        write_table(json, {"grid": self.spec.name, "cells": [row.json() for row in rows]})
        return 0

    def logs(self, cell: str, *, follow: bool = False, lines: int = 40) -> int:
        """Print the end of a cell's log; Slurm's own output where its job died before the run began.

        Args:
            cell: Its signature, or the beginning of it, or its label, as in 'n_future=4 seed=1'.
            follow: Go on printing what is added, until the cell has ended.
            lines: How many lines; 0: all.
        """
        if lines < 0:
            raise InputError(f"lines: {lines} is less than none")
        found = find_cell(self.tuning.cells, cell)
        (row,) = read_status([found], self.folder).rows
        path = logs.newest_log(row, self.submissions)
        if path is None:
            raise InputError(f"{found.label}: there is no log yet; the cell is {row.state.value}")
        position = logs.show_end(path, lines)
        if follow:
            logs.follow(path, position, lambda: read_status([found], self.folder).rows[0].state in ACTIVE)
        return 0

    def cancel(self, cells: list[str]) -> int:
        """Take the cells of a grid, or those named, out of Slurm's queue; those that run are asked to save and stop.

        Args:
            cells: Signatures, beginnings of them, or labels. Default: all.
        """
        slurm.need_slurm("nothing can be cancelled from here; Ctrl-C in `mtp grid run` stops local runs")
        all_cells = self.tuning.cells  # whatever the gate makes of them
        chosen = [find_cell(all_cells, name) for name in cells] or all_cells
        queue = self.submissions.read_queue()
        rows = status_rows(chosen, self.submissions, queue)
        hit = [(row.cell.label, row.queued) for row in rows if row.queued is not None]
        if not cells:
            known = [cell.signature for cell in all_cells]
            others = self.submissions.not_in_file(self.spec.name, known, queue)
            hit += [("no longer in the file", entry) for entry in others]
        self._warn(None)
        slurm.cancel([entry.id for _, entry in hit])
        for label, entry in hit:
            say(f"{label}: cancelled {entry.id}, which was {entry}")
        local = [row for row in rows if row.queued is None and row.state is State.RUNNING]
        for row in local:
            say(f"{row.cell.label}: not Slurm's: Ctrl-C in the `mtp grid run` that started it stops it")
        if not hit and not local:
            say("nothing waits or runs")
        return 0

    @property
    def spec(self) -> GridSpec:
        return self._loaded[0]

    @property
    def cells(self) -> Sequence[Cell]:
        return self.gating.cells

    @cached_property
    def tuning(self) -> Tuning:
        """Which of all cells the grid has, by its results so far."""
        return tuned(self.spec, self._loaded[1])

    @cached_property
    def gating(self) -> Gating:
        """Which of them run to a gate, wait there or were stopped, by what they have come to so far."""
        return gated(self.spec, self.tuning.cells)

    @cached_property
    def costs(self) -> list[Cost]:
        """Of what was stopped nothing is left."""
        found = zip(self.cells, costs(self.cells, self._loaded[2]))
        return [replace(cost, done=1.0) if cell.group in self.gating.stopped else cost for cell, cost in found]

    @cached_property
    def all_costs(self) -> list[Cost]:
        """With what follows once it is tuned."""
        return [*self.costs, *costs(self.tuning.later, self._loaded[2])]

    @cached_property
    def _loaded(self) -> tuple[GridSpec, list[Cell], Resolver]:
        folder = cache_folder()
        resolver = Resolver(None if folder is None else folder / "configurations")
        spec, cells = load_cells(Path(self.file), resolver, self.folder, self.overrides)
        resolver.remember()
        return spec, cells, resolver

    def _submit(self, parallel: int | None, defaults: Mapping[str, str | None], wanted: Sequence[State]) -> int:
        if parallel is not None and parallel < 1:
            raise InputError(f"max_parallel: {parallel} is not a number of cells; give 1 or more")
        check_precision(self.spec, self._loaded[1])
        total = Total.of(self.all_costs)
        slurm.need_slurm(f"`{self._command('run')}` runs the cells on this machine")
        check_budget(self.spec, total)
        if missing := said_of_missing((cell.config for cell in self._to_run()), lists_alone=True):
            raise InputError(missing)
        writable(self.folder)
        with self.submissions.locked():
            self.submissions.check()
            rows = self.gating.show(status_rows(self.cells, self.submissions, self.submissions.update()))
            answered = self.tuning.diverged
            asked = [row for row in rows if row.cell.signature not in answered and self.gating.may_run(row.cell)]
            ready = to_submit(asked, wanted)
            todo = [fill_in(row.cell, defaults) for row in ready]
            if todo:
                self._prepare_charts()
            queued = {row.cell.signature: row.queued.id for row in rows if row.queued is not None}
            made = submit_cells(self.spec.name, self.submissions, todo, parallel, queued)
        if native := [cell.config["trainer"]["precision"] for cell in todo if cell.native_precision]:
            said = f"trainer.precision is {native[0]}, as this machine computes it natively"
            say(f"warning: {said}: where the nodes are of another kind, set it in the grid", error=True)
        say("\n".join(submitted_text(rows, ready, made, self._command("resume"))))
        self._say_what_follows("the same command submits them")
        for row in rows:
            if row.state is State.DAMAGED:
                say(f"warning: {row.cell.label}: damaged: {row.reason}", error=True)
        return 0

    def _command(self, word: str) -> str:
        """Another command for the same grid, to be pasted into a shell."""
        runs = () if self.runs == Path("runs") else ("--runs", str(self.runs))
        return command("grid", word, self.file, *runs)

    def _to_run(self) -> list[Cell]:
        """What is neither finished, nor diverged where it is tuned, which is an answer too, nor kept at the gate."""
        self._read_again()
        answered = self.tuning.diverged
        cells = [cell for cell in self.cells if cell.signature not in answered and self.gating.may_run(cell)]
        return [cell for cell in cells if cell_state(cell.directory) is not State.FINISHED]

    def _read_again(self) -> None:
        """What has ended since may have been the last that a choice or a gate waited for."""
        for name in ("tuning", "gating"):
            vars(self).pop(name, None)

    def _without_record(self) -> None:
        """What only shows the cells does so without MLflow too."""
        try:
            self.gating  # noqa: B018
        except UnavailableError as error:
            say(f"warning: {error}; what the gate makes of the cells is not known", error=True)
            self.gating = Gating(self.tuning.cells)

    def _say_what_follows(self, remark: str = "") -> None:
        if follows := self.tuning.follows or self.gating.follows:
            say(follows + (f"; {remark}" if remark else ""))

    def _warn(self, slurm_problem: str | None) -> None:
        for problem in self.submissions.problems:
            say(f"warning: {problem}", error=True)
        if slurm_problem is not None:
            say(f"warning: from the cells' files alone: {slurm_problem}", error=True)

    def _warn_of_missing(self, cells: Sequence[Cell]) -> None:
        on_nodes = any(one.grid == self.spec.name for one in self.submissions.read())  # a corpus may lie on these alone
        if missing := said_of_missing((cell.config for cell in cells), lists_alone=on_nodes):
            say(f"warning: {missing}", error=True)

    def _settle(self, rows: Sequence[CellStatus]) -> None:
        if problem := settle_dead(rows, default_tracking_uri(self.folder)):
            say(f"warning: {problem}", error=True)

    def _prepare_charts(self) -> None:
        """Have the charts in MLflow while the cells run. What goes wrong with it is no reason not to run."""
        try:
            for spec in self.spec.parts:
                mlflow_page.record_charts(default_tracking_uri(self.folder), spec)
        except Exception as error:  # MLflow raises what its store raises
            say(f"warning: MLflow: {type(error).__name__}: {error}", error=True)

    def _report(self, out: str | None, json: str | None, again: bool, at: At | None = None) -> bool:
        """Print first, then write: whatever goes wrong with a file or MLflow, the table has been seen."""
        tables, well = report_stages(self.spec, self._loaded[1], self.runs, out, again, at)
        write_table(json, {"grid": self.spec.name, "stages": tables} if self.spec.stages else tables[0])
        return well
