"""Slurm's programs as scripts over one file, `queue`, with a line `job|index|name|state|reason` for each element."""

import stat
import sys
from pathlib import Path

import pytest

_HEAD = f"""#!{sys.executable} -SE
import os, re, sys
from pathlib import Path
here = Path(__file__).parent
queue = here / "queue"
lines = [line.split("|") for line in queue.read_text().splitlines()]
with (here / "calls").open("a") as calls:
    print(Path(sys.argv[0]).name, *sys.argv[1:], file=calls)
if (here / "silent").exists():
    import time
    time.sleep(60)
if (here / "broken").exists():
    sys.exit("Unable to contact slurm controller")
options = dict(arg[2:].split("=", 1) for arg in sys.argv[1:] if arg.startswith("--") and "=" in arg)
"""
_SCRIPTS = {
    "sbatch": """
text = Path(sys.argv[-1]).read_text()
if (here / "refuses").exists():
    sys.exit("sbatch: error: " + (here / "refuses").read_text())
if "--test-only" in sys.argv:
    if (here / "doubts").exists():
        sys.exit("allocation failure: Requested node configuration is not available")
    sys.exit(0)
job = 1 + max([int(line[0]) for line in lines], default=6)
name = re.search("--job-name=(.*)", text)[1]
count = int(re.search("--array=0-([0-9]+)%", text)[1]) + 1
with queue.open("a") as file:
    file.writelines(f"{job}|{index}|{name}|PENDING|Priority\\n" for index in range(count))
print(job)
""",
    "squeue": """
names = options["name"].split(",")
for job, index, name, state, reason in lines:
    if name not in names or (state == "COMPLETED" and options.get("states") != "all"):
        continue
    print(job if options["format"] == "%F" else f"{job}_{index}|{name}|{state}|{reason}")
""",
    "scancel": """
left = [line for line in lines if f"{line[0]}_{line[1]}" not in sys.argv[1:]]
queue.write_text("".join("|".join(line) + "\\n" for line in left))
""",
    "sacct": """
if not (here / "accounts").exists():
    sys.exit("Slurm accounting storage is disabled")
for line in (here / "accounts").read_text().splitlines():
    job, name = line.split("|")
    if name == options["name"]:
        print(job)
""",
    "scontrol": "print('MaxArraySize            = ' + (here / 'largest').read_text())",
    "sinfo": "print((here / 'nodes').read_text())",
    "srun": "",
}


class FakeSlurm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.queue = folder / "queue"
        self.queue.touch()
        self.say("largest", "1001")
        self.say("nodes", "main*|up|idle")
        for name, text in _SCRIPTS.items():
            self.say(name, _HEAD + text)
            (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)

    def say(self, name: str, text: str = "") -> None:
        """`silent`, `broken`, `refuses` (why), `doubts` (before), `nodes`, `largest` (array), `accounts` (job|name)."""
        (self.folder / name).write_text(text)

    def set(self, element: str, state: str, reason: str = "None") -> None:
        job, index = element.split("_")
        lines = [line.split("|") for line in self.queue.read_text().splitlines()]
        new = [[*line[:3], state, reason] if line[:2] == [job, index] else line for line in lines]
        self.queue.write_text("".join("|".join(line) + "\n" for line in new))

    def empty(self) -> None:
        self.queue.write_text("")

    def elements(self) -> list[str]:
        return ["_".join(line.split("|")[:2]) for line in self.queue.read_text().splitlines()]

    def calls(self, name: str) -> int:
        calls = self.folder / "calls"
        return sum(line.split()[0] == name for line in calls.read_text().splitlines()) if calls.exists() else 0


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm that only keeps a queue, first on the PATH; the working folder is the test's own."""
    folder = tmp_path / "slurm-bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return FakeSlurm(folder)
