"""The scripts are valid, and complete commands, flags and files, with no Python at hand."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mtp_lightning.cli import COMMANDS, main

ASK = """
source "$1"; shift
COMP_WORDS=(mtp "$@"); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
function=$(complete -p mtp | sed 's/.* -F \\([^ ]*\\).*/\\1/')
$function mtp "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh"):
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as out:
            patch.setattr("sys.stdout", out)
            assert main(["completion", shell]) == 0
    return folder


def complete(scripts: Path, *words: str) -> list[str]:
    command = ["bash", "--norc", "-c", ASK, "bash", str(scripts / "bash"), *words]
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=scripts, env=environment, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_is_valid(scripts: Path, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([program, "-n", scripts / shell], check=True, env=dict(os.environ))


def test_commands_flags_choices_and_files(scripts: Path) -> None:
    assert set(complete(scripts, "")) >= {name.split()[0] for name in COMMANDS}
    assert complete(scripts, "gen") == ["generate"]
    assert set(complete(scripts, "grid", "re")) == {"resume", "report"}
    assert complete(scripts, "fit", "--model.heads.n_f") == ["--model.heads.n_future"]
    assert complete(scripts, "fit", "--data.source.pa") == ["--data.source.path"]
    assert complete(scripts, "fit", "-c", "ba") == ["bash"]
    assert set(complete(scripts, "generate", "runs/mine", "--max")) == {"--max_new_tokens"}
    assert complete(scripts, "generate", "--decoding", "gr") == ["greedy"]
    assert complete(scripts, "grid", "run", "zs") == ["zsh"]
    assert set(complete(scripts, "completion", "")) == {"bash", "zsh"}


def test_every_flag_of_every_command(scripts: Path) -> None:
    for name in COMMANDS:
        flags = complete(scripts, *name.split(), "--")
        assert "--help" in flags, name
        assert len(flags) > 1, name
