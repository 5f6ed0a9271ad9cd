"""The sandbox as a part of the machine: without its means, dying servers, trying again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_evaluation_verdicts import CHECK, GOOD, ROOT, one, sandbox

from mtp_lightning.evaluation.sandbox import (
    Limits,
    Outcome,
    Program,
    Sandbox,
    SandboxError,
    confine,
    run,
)

__all__ = ["sandbox"]


def test_several_at_once_and_a_caller_that_leaves() -> None:
    with Sandbox(Limits(cpu_seconds=2.0), workers=2) as sandbox:
        outcomes = dict(sandbox.run(Program(f"print({i})") for i in range(9)))
        assert {i: outcome.stdout for i, outcome in outcomes.items()} == {i: f"{i}\n" for i in range(9)}
        for _, outcome in sandbox.run(Program("print(1)") for _ in range(100_000)):
            assert outcome.verdict == "passed"
            break
        assert next(iter(sandbox.run([Program("print(2)")])))[1].stdout == "2\n"


def test_no_sandbox_is_no_failed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError), Sandbox():
        pass
    monkeypatch.undo()
    monkeypatch.setattr(run, "_NOTHING_ALLOWED", "allowed = ['fork']")
    with pytest.raises(SandboxError, match=r"does not hold here .*fork"), Sandbox():
        pass


def test_without_landlock_and_bubblewrap_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "landlock_abi", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with (
        pytest.raises(SandboxError, match=r"no Landlock, and bwrap is not installed.*--unsafe_execution true"),
        Sandbox(),
    ):
        pass
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(SandboxError, match=r"on x86_64 or aarch64, and this is .*riscv64"):
        run.confinement()
    with Sandbox(unsafe=True) as sandbox:
        assert sandbox.level == "none"
        assert one(sandbox, Program(GOOD, check=CHECK)).verdict == "passed"


def test_a_kernel_that_denies_landlock() -> None:
    """By a filter that answers ENOSYS to landlock_create_ruleset, as old kernels and some containers do."""
    code = """
import errno, os, sys
from mtp_lightning.evaluation.sandbox import Program, Sandbox, SandboxError, confine, filters
filters.NUMBERS["landlock_create_ruleset"] = (444, 444)
confine._libc().prctl(38, 1, 0, 0, 0)
rules = [filters.Rule("landlock_create_ruleset", errno.ENOSYS)]
confine.install(filters.assemble(rules, os.uname().machine))
try:
    with Sandbox() as sandbox:
        print("ran", [o.verdict for _, o in sandbox.run([Program("x")])])
except SandboxError as error:
    print(error)
"""
    env = {"PYTHONPATH": str(ROOT), "PATH": "/nowhere"}
    out = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert "has no Landlock, and bwrap is not installed" in out.stdout, out


def test_a_server_that_dies_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox() as sandbox:
        process = sandbox._servers[0]._process
        assert process is not None
        process.kill()
        assert one(sandbox, Program(GOOD, check=CHECK)).verdict == "passed"
        monkeypatch.setattr(run, "_START", "raise OSError(28, 'No space left on device')")
        assert sandbox._servers[0]._process is not None
        sandbox._servers[0]._process.kill()
        with pytest.raises(SandboxError, match=r"server ended: OSError: .*No space left"):
            list(sandbox.run([Program(GOOD, check=CHECK)]))


@pytest.mark.parametrize("refused", ["_mount", "_checked"])
def test_namespaces_in_which_nothing_is_allowed_are_not_entered(refused: str) -> None:
    """As Ubuntu 24.04 has them for an ordinary user: `unshare` succeeds, and what follows is refused."""
    code = f"""
import os
from mtp_lightning.evaluation.sandbox import confine
def names():
    return [os.readlink(f"/proc/self/ns/{{kind}}") for kind in ("mnt", "net", "user")]
def refuse(*_):
    raise PermissionError(13, "Permission denied")
before, confine.{refused} = names(), refuse
print(confine.enter_namespaces(), names() == before)
"""
    env = {"PYTHONPATH": str(ROOT), "PATH": "/nowhere"}
    out = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert (out.stdout, out.returncode) == ("False True\n", 0), out


def test_a_server_goes_without_namespaces_where_it_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = "from mtp_lightning.evaluation.sandbox import confine; d = 'def r(*a): raise OSError(13, \"denied\")'; "
    start = run._START.replace("main(sys.argv[2])", f"{refuse}exec(d); confine._mount = r; main(sys.argv[2])")
    monkeypatch.setattr(run, "_START", start)
    server = run._Server(0, unsafe=False, namespaces=True)
    try:
        server.start()
        assert "seccomp" in server.level
        assert "namespaces" not in server.level
    finally:
        server.stop()


def test_a_child_that_cannot_be_confined_is_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    start = run._START.replace(
        "main(sys.argv[2])",
        "from mtp_lightning.evaluation.sandbox import confine; d = 'def r(*a): raise OSError(1, \"denied\")'; "
        "exec(d); confine.restrict = r; main(sys.argv[2])",
    )
    monkeypatch.setattr(run, "_START", start)
    with pytest.raises(SandboxError, match="denied"), Sandbox():
        pass


def test_infrastructure_is_tried_again_and_never_returned(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    broken = Outcome("infrastructure", 0.0, 0.0, stderr="killed from outside")
    answers: list[Outcome] = [broken, Outcome("passed", 0.1, 0.1), broken, broken]
    monkeypatch.setattr(run._Server, "ask", lambda self, *args: answers.pop(0))
    assert one(sandbox, Program("")).verdict == "passed"
    with pytest.raises(SandboxError, match="could not run a program: killed from outside"):
        list(sandbox.run([Program("")]))
    assert answers == []


def test_bubblewraps_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not installed everywhere: what would be run."""
    monkeypatch.setattr(confine, "landlock_abi", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    command, landlock = run.confinement()
    assert not landlock
    assert command[:2] == ["/usr/bin/bwrap", "--unshare-all"]
    assert command[-3:] == ["--remount-ro", "/", "--"]
    text = " ".join(command)
    for part in ("--die-with-parent", "--new-session", "--cap-drop ALL", "--ro-bind /usr /usr", "--dev-bind /dev/null"):
        assert part in text
    assert "--bind /" not in text.replace("-bind /dev", "").replace("--ro-bind", "")
    assert f"--ro-bind {sys.base_prefix} {sys.base_prefix}" in text
    assert "/proc" not in text  # it would show bwrap's own environment
    started = {}

    def popen(words: list[str], **options: object) -> None:
        started.update(options, words=words)
        raise OSError("not here")

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(OSError, match="not here"), Sandbox():
        pass
    assert started["env"] == run.ENVIRONMENT
    assert not json.loads(started["words"][-1])["landlock"]  # type: ignore[index]


def test_a_bubblewrap_that_confines_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(confine, "landlock_abi", lambda: 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxError, match=r"does not hold here \(bubblewrap, seccomp"), Sandbox():
        pass


def test_a_world_without_proc_has_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """bubblewrap's."""

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file")

    monkeypatch.setattr("builtins.open", gone)
    assert confine._usable_ids() == (0, 0)
