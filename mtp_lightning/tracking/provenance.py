"""Where a run's numbers come from: the commit of the code, versions, the machine."""

import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mtp_lightning.files import read_json
from mtp_lightning.machine import processor_name

SNAPSHOT_FILE = "git.json"
"""In a copy of a checkout: the git tags of what was copied."""


def provenance() -> dict[str, str]:
    """Tags of a run. The git ones are absent where the code does not run from a checkout."""
    tags = git_tags(Path(__file__).resolve().parents[2])
    for package in ("mtp-lightning", "torch", "lightning"):
        try:
            tags[f"mtp.version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return tags | machine_tags() | slurm_tags(os.environ)


def git_tags(checkout: Path) -> dict[str, str]:
    """`mtp.git_commit` and whether anything tracked was changed since, `mtp.git_dirty`."""
    copied = read_json(checkout / SNAPSHOT_FILE)
    if copied is not None:
        return copied
    if not (checkout / ".git").exists():
        return {}
    commit = _git(checkout, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return {"mtp.git_commit": commit, "mtp.git_dirty": str(bool(changed)).lower()}


def _git(checkout: Path, *args: str) -> str | None:
    try:
        out = subprocess.run(["git", *args], cwd=checkout, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()


def machine_tags() -> dict[str, str]:
    """Host, processor or GPU, and the number of threads torch uses."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    return {
        "mtp.host": socket.gethostname(),
        "mtp.device": device,
        "mtp.threads": str(torch.get_num_threads()),
        "mtp.cores": str(os.cpu_count()),
        "mtp.python": platform.python_version(),
    }


def slurm_tags(environment: Mapping[str, str]) -> dict[str, str]:
    """`mtp.slurm_job`, as `squeue` and `mtp grid status` write it, where the run is one."""
    array, index = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{index}" if array and index else environment.get("SLURM_JOB_ID")
    return {"mtp.slurm_job": job} if job else {}
