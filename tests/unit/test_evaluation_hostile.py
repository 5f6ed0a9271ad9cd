"""Hostile programs are contained: as root and as an ordinary user, with namespaces and without them."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox_hostile import PROGRAMS

ORDINARY = 54_242
LEVELS = [
    ("root", "namespaces"), ("user", "alone"), pytest.param("root", "alone", marks=pytest.mark.slow),
    pytest.param("user", "namespaces", marks=pytest.mark.slow),
    pytest.param("root", "bubblewrap", marks=pytest.mark.slow),
    pytest.param("user", "bubblewrap", marks=pytest.mark.slow),
]  # fmt: skip
SEEN = [
    "read a system file", "read the runner's file", "the runner's environment", "write anywhere",
    "write through a shell", "many files", "delete", "rename and link", "change a mode", "change times", "truncate",
    "TCP", "UDP", "abstract socket", "socket in a folder", "datagram from a pair", "kill by number", "kill by search",
    "kill by a queued signal", "kill by its limits", "kill by ownership", "slow another down", "read memory",
    "kill itself", "watch a folder", "shared memory", "attach to shared memory", "message queue", "semaphores",
]  # fmt: skip
"""What an ordinary user's program does where nothing but its resources is limited."""


@functools.cache
def escapes(user: str, how: str) -> dict[str, str]:
    """Name of a program -> why it counts as escaped, or an empty text."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare, and these programs run in a mount namespace of their own alone")
    if how == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed")
    if user == "root" and os.getuid() != 0:
        pytest.skip("only root can run them as root")
    wanted = os.getuid() if os.getuid() else {"root": 0, "user": ORDINARY}[user]
    private = ["unshare", "--mount", "--propagation", "private"]
    private += [] if os.getuid() == 0 else ["--user", "--map-current-user"]
    if subprocess.run([*private, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace is to be had here")
    script = Path(__file__).with_name("sandbox_hostile.py")
    arguments = [os.readlink("/proc/self/ns/mnt"), str(wanted), how]
    root = str(script.parents[2])
    out = subprocess.run(
        [*private, sys.executable, str(script), *arguments], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": root}, errors="replace",
    )  # fmt: skip
    if "MissingNamespaces" in out.stderr:
        pytest.skip("no further namespaces are to be had here")
    assert out.returncode == 0, out.stderr
    found: dict[str, str] = json.loads(out.stdout)
    return found


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("user", "how"), LEVELS)
def test_a_hostile_program_is_contained(user: str, how: str, name: str) -> None:
    assert escapes(user, how)[name] == ""


@pytest.mark.parametrize(("user", "how"), LEVELS)
def test_the_level_is_the_one_that_is_meant(user: str, how: str) -> None:
    level = escapes(user, how)["level"]
    assert ("bubblewrap" if how == "bubblewrap" else "landlock") in level
    assert "seccomp" in level
    assert ("namespaces" in level) == (how == "namespaces")


@pytest.mark.slow
def test_the_oracles_see_what_escapes() -> None:
    """The same programs with no confinement but limits, as a user who has nothing."""
    found = escapes("user", "unsafe")
    assert [name for name in SEEN if not found[name]] == []
    assert found["benign"] == ""
