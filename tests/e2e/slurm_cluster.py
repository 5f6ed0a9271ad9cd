"""A private Slurm cluster of one node, or of several on this machine: daemons, files and ports are a test
session's own; /etc is left alone."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

WHOLE = "resources: {cpus: 4}\n"
"""In a grid file: a cell that needs the whole node."""
CLIENT_SECONDS = 30.0
"""Slurm's clients wait for ever for a controller that is not there."""
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# A job that was queued again waits for `cred_expire` (120 s by default; 5 is the least), whatever else is free.
_CONFIG = """\
ClusterName=mtp
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={controller_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_min_age_reserve=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
KillWait=5
CompleteWait=0
EpilogMsgTime=0
MinJobAge=30
MailProg=/bin/true
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=abrupt Nodes={names} MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=urgent Nodes={names} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """`cluster("squeue", "-h")`: a client's output."""

    def __init__(self, folder: Path, cpus: int, nodes: int = 1) -> None:
        self.folder, self.cpus = folder, cpus
        self.nodes = [f"node{i}" for i in range(nodes)] if nodes > 1 else [_host()]
        """Names; of several none can be resolved."""
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def __call__(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=CLIENT_SECONDS, cwd=self.folder
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def start(self) -> None:
        ports = _free_ports(1 + len(self.nodes))
        nodes = [
            f"NodeName={name} NodeHostname={_host()} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} RealMemory=8000"
            for name, port in zip(self.nodes, ports[1:])
        ]
        text = _CONFIG.format(
            folder=self.folder, host=_host(), controller_port=ports[0], nodes="\n".join(nodes),
            names=",".join(self.nodes),
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        for name in ("state", *(f"spool/{name}" for name in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        names = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{name}={self.folder / file}" for name, file in names.items()]
        self("munged", "--force", f"--log-file={self.folder / 'munged.log'}", *options)
        self("slurmctld", "-c", "-f", str(self.folder / "slurm.conf"))
        for name in self.nodes:
            self.start_node(name)
        self.until(self.all_idle)

    def all_idle(self) -> bool:
        states = self("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T", check=False).split()
        return states == ["idle"] * len(self.nodes)

    def start_node(self, name: str) -> None:
        self("slurmd", "-N", name, "-f", str(self.folder / "slurm.conf"))

    def kill_node(self, name: str) -> None:
        """With all that runs on it, and the controller is told; `start_node` brings it back."""
        os.kill(int((self.folder / f"slurmd-{name}.pid").read_text()), signal.SIGKILL)
        for process in psutil.process_iter(["environ"]):
            environment = process.info["environ"] or {}
            if environment.get("SLURMD_NODENAME") == name and environment.get("SLURM_CONF", "").startswith(
                str(self.folder)
            ):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self("scontrol", "update", f"nodename={name}", "state=down", "reason=killed")

    def stop(self) -> None:
        self("scancel", "--user=root", check=False)
        for pid in [*self.folder.glob("slurmd-*.pid"), self.folder / "slurmctld.pid", self.folder / "munged.pid"]:
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGTERM)

    def jobs(self) -> dict[str, str]:
        """`12_3` -> its state, of all that wait or run."""
        lines = self("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def clear(self) -> None:
        self("scancel", "--user=root")
        self.until(lambda: not self.jobs())

    def preempt(self, seconds: float = 1.0) -> None:
        """A job of the higher partition that needs the whole node."""
        self(
            "sbatch", "--partition=urgent", f"--ntasks={self.cpus}", "--output=/dev/null", "--wrap", f"sleep {seconds}"
        )

    @staticmethod
    def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.1)


def why_not() -> str | None:
    """Why there can be no cluster here."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}): apt-get install slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "the cluster's daemons have to be started by root"


def running_cluster(folder: Path, cpus: int = 4, nodes: int = 1) -> Iterator[Cluster]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    cluster = Cluster(folder, cpus, nodes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from running_cluster(tmp_path_factory.mktemp("slurm"))


@pytest.fixture
def cluster(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, empty, for commands called from a folder of the test's own."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environment[name])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    yield slurm
    slurm.clear()


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports
