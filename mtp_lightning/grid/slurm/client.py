"""Slurm's own programs, each called with a time limit; and the batch script, which submitit writes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError, UnavailableError
from mtp_lightning.grid.spec.resources import Resources

CLIENT_SECONDS = 60.0
"""Slurm's programs wait for ever for a controller that is not there."""
SIGNAL_SECONDS = 120
"""How long before the end of its time a job is warned, so that it can save."""
_WAITING = frozenset(["PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"])
_UNSURE = re.compile(r"timed out|unable to contact|connection (failure|refused|reset)|zero bytes", re.IGNORECASE)
"""What sbatch says when it lost the controller, which may have accepted the job nevertheless."""
_NO_SUCH_NODE = "Requested node configuration is not available"
_IN_SERVICE = re.compile(r"(idle|mixed|allocated|completing|planned)[~#$@%!^-]*")
"""States of a node that can run jobs. A sign after it is about saving power; only `*` means: does not respond."""
_OURS = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_", "SLURM_")
"""Variables by which a user or a surrounding job would change our commands; they take precedence over the script."""
_AT_ONCE = 500
"""Ids in one command."""


class SlurmError(UnavailableError):
    """Slurm cannot be asked, or refuses."""


class NoAnswerError(SlurmError):
    """It is not known whether Slurm did what it was asked for."""


@dataclass(frozen=True)
class QueueEntry:
    """One element of a job array that waits or runs, as squeue lists it."""

    id: str
    """As Slurm writes it: `12_3`."""
    job_name: str
    state: str
    reason: str | None

    @property
    def waits(self) -> bool:
        return self.state in _WAITING

    @property
    def runs(self) -> bool:
        return not self.waits and self.state != "COMPLETING"

    def __str__(self) -> str:
        return f"{self.state.lower()} ({self.reason})" if self.reason else self.state.lower()


def missing_program() -> str | None:
    wanted = ("sbatch", "squeue", "scancel", "sinfo", "srun")
    return next((name for name in wanted if shutil.which(name) is None), None)


def need_slurm(otherwise: str) -> None:
    """
    Raises:
        InputError: there is no Slurm here; says what to do `otherwise`.
    """
    program = missing_program()
    if program is not None:
        raise InputError(f"there is no Slurm here: {program} is not on the PATH; {otherwise}")


def read_queue(job_names: Iterable[str]) -> dict[str, QueueEntry]:
    """Array elements that wait, run or are just ending, by id; those that are over are not in it."""
    names = ",".join(job_names)
    if not names:
        return {}
    lines = _ask("squeue", "--noheader", "--array", "--format=%i|%j|%T|%r", f"--name={names}").splitlines()
    parts = [line.split("|", 3) for line in lines]
    return {id: QueueEntry(id, name, state, None if why == "None" else why) for id, name, state, why in parts}


def find_job(name: str, since: float) -> str | None:
    """The id of the job array with this name, from the queue or else from the accounts, if any are kept; None where
    Slurm knows no such job."""
    queued = _ask("squeue", "--noheader", "--states=all", "--format=%F", f"--name={name}").split()
    if queued:
        return queued[0]
    start = time.strftime("--starttime=%Y-%m-%dT%H:%M:%S", time.localtime(since - 3600))  # clocks differ
    try:
        lines = _ask("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID", f"--name={name}", start)
    except NoAnswerError:
        raise
    except SlurmError:
        return None  # no accounts are kept, which is common
    return lines.split()[0].split("_")[0] if lines else None


def cancel(ids: Sequence[str]) -> None:
    for first in range(0, len(ids), _AT_ONCE):
        _ask("scancel", *ids[first : first + _AT_ONCE])


def largest_array() -> int:
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"))
    return max(1, int(found[1])) if found else 1001


def refusal(script: Path, partition: str | None) -> str | None:
    """Why Slurm would not take the job, in its own words. While nodes are out of service, "not available" may mean that
    it will have them again or that it never had them; then the job is submitted, with a warning."""
    done = _run("sbatch", "--test-only", str(script))
    if done.returncode == 0:
        return None
    said = _said(done)
    if _NO_SUCH_NODE in said and (out := _out_of_service(partition)):
        print(
            f"warning: {out} are out of service, so that Slurm cannot say whether it has nodes for these cells; they "
            "are submitted, and `mtp grid status` shows what they wait for",
            file=sys.stderr,
        )
        return None
    return said


def _out_of_service(partition: str | None) -> str | None:
    """How many nodes of the partition, or of several (`a,b`), are out of service, if any."""
    wanted, states = partition.split(",") if partition else [], []
    for line in _ask("sinfo", "--noheader", "--Node", "--format=%P|%a|%T").splitlines():
        name, available, state = line.split("|")
        if name.removesuffix("*") in wanted if wanted else name.endswith("*"):
            states.append(available == "up" and bool(_IN_SERVICE.fullmatch(state)))
    of = f"partition {partition}" if partition else "the default partition"
    return None if all(states) else f"{states.count(False)} of {len(states)} nodes of {of}"


def submit(script: Path, keep_open: int, after: str | None = None) -> str:
    """The id of the new job.

    Args:
        keep_open: a file descriptor that sbatch holds while it works, so that a lock on it outlives this process.
        after: id of an element that has to end well before the job begins; if it does not, Slurm drops the job.

    Raises:
        NoAnswerError: it is not known whether the job was accepted.
        SlurmError: it was not accepted.
    """
    waits = [] if after is None else [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    done = _run("sbatch", "--parsable", *waits, str(script), keep_open=keep_open)
    if done.returncode < 0 or (done.returncode and _UNSURE.search(done.stderr)):
        raise NoAnswerError(_said(done))
    return _answer(done).split(";")[0]


def write_script(
    folder: Path, job_name: str, cells: int, resources: Resources, parallel: int | None, setup: Sequence[str]
) -> Path:
    """A job array in which submitit runs, in every task of every element, what `job.pkl` in `folder` holds."""
    from submitit.slurm.slurm import SlurmExecutor

    if not str(folder).isprintable():
        raise InputError(
            f"runs: {str(folder)!r} has a line break or another control character in its path, and Slurm "
            "reads a job's script line by line: give another folder"
        )
    executor = SlurmExecutor(_PLACE)
    quoted = shlex.quote(str(folder))
    element = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl"
    # submitit moves its files into place once it knows the job's id. If the submitter were killed before that, jobs
    # would wait for these files for ever; so here each job makes its own copy.
    copy = f'cp -n {quoted}/job.pkl {quoted}/"{element}"'
    executor.update_parameters(**_parameters(job_name, cells, resources, parallel), setup=[*setup, copy])
    executor.parameters["map_count"] = cells
    script = folder / "job.sh"
    text = executor._make_submission_file_text(executor._submitit_command_str, job_name)
    script.write_text(re.sub(rf"{_PLACE}(\S*)", lambda found: _in_script(folder, found[1]), text), encoding="utf-8")
    return script


_PLACE = "/the-folder-of-the-submission"
"""Stands for it while submitit writes the script: Slurm and submitit would read a `%` in its name as their own."""


def _in_script(folder: Path, pattern: str) -> str:
    """A path as one word of a shell and of sbatch's options. A file name with a pattern (`%A`) is read by Slurm, for
    which `%%` is a percent sign."""
    return shlex.quote(str(folder).replace("%", "%%") + pattern if pattern else str(folder))


def _parameters(job_name: str, cells: int, resources: Resources, parallel: int | None) -> dict[str, Any]:
    limit = resources.minutes
    wanted: dict[str, Any] = {
        "job_name": job_name,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "mem": None if resources.memory_gb is None else f"{round(resources.memory_gb * 1024)}M",
        "gpus_per_node": resources.gpus or None,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
    }
    # For these two submitit has its own defaults, 5 minutes and a key that a cluster may refuse; None removes them.
    parameters = {key: value for key, value in wanted.items() if value is not None} | {"time": limit, "wckey": None}
    # Since Slurm 22.05 a step does not inherit its job's number of cores.
    steps = [f"--cpus-per-task={resources.cpus}"] if resources.cpus is not None else []
    steps.append("--kill-on-bad-exit=1")  # or a task would wait for a killed one until the time is over
    return parameters | {
        "array_parallelism": min(cells, parallel or cells),
        "signal_delay_s": SIGNAL_SECONDS if limit is None else min(SIGNAL_SECONDS, limit * 60 // 4),
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
        "srun_args": steps,
    }


def _ask(*command: str) -> str:
    return _answer(_run(*command))


def _answer(done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode != 0:
        raise SlurmError(_said(done))
    return done.stdout.strip()


def _run(*command: str, keep_open: int | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(_OURS)}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
            env=environment,
            pass_fds=[] if keep_open is None else [keep_open],
        )
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]} is not on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(f"{command[0]} has not answered in {CLIENT_SECONDS:g} s") from error


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return f"{done.args[0]}: {'; '.join(lines) or f'exit status {done.returncode}'}"
